"""What ``bench gpu`` leaves behind: tables, a JSON file with raw waits, a picture."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from bench.comparison.report import result_head, write_json
from bench.gpu.figure import draw_gpu
from bench.gpu.options import GpuOptions
from bench.gpu.result import LengthResult

if TYPE_CHECKING:
    from bench.gpu.rates import Ceilings, Rate
    from bench.gpu.small_costs import DoorbellStop, SmallCosts


@dataclass(slots=True)
class GpuReport:
    """All results so far.

    Attributes:
        options: What was asked for.
        shape: Of the model.
        folder: Where results go.
        ceilings: What the machine can do.
        rates: How near calls come to it, by the title of their table.
        small_costs: Events, boundaries, switches.
        doorbell_stops: Single stops.
        lengths: Blocking and tax.
    """

    options: GpuOptions
    shape: dict[str, int]
    folder: Path
    ceilings: "Ceilings | None" = None
    rates: "dict[str, list[Rate]]" = field(default_factory=dict)
    small_costs: "SmallCosts | None" = None
    doorbell_stops: "list[DoorbellStop]" = field(default_factory=list)
    lengths: list[LengthResult] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Say what was measured, and on what."""
        layers = self.shape["num_layers"]
        return (
            f"Prefill of Llama-3.1-8B's shape, {layers} layers, random weights, bf16, eager; "
            f"{torch.cuda.get_device_name()}"
        )

    def write(self) -> None:
        """Write the JSON file, and the picture once there is a length."""
        config = asdict(self.options) | {"out": self.options.out.name}
        head = result_head(self.title, config, self.options.seed)
        document = head | {
            "gpu": _describe_gpu(),
            "shape": self.shape,
            "small_costs": self.small_costs and asdict(self.small_costs),
            "ceilings": self.ceilings and asdict(self.ceilings),
            "rates": {
                title: [asdict(rate) for rate in rates] for title, rates in self.rates.items()
            },
            "doorbell_stops": [asdict(stop) for stop in self.doorbell_stops],
            "lengths": [
                asdict(length) | {"tax": {name: length.tax(name) for name in length.cuts}}
                for length in self.lengths
            ],
        }
        write_json(self.folder / "gpu.json", document)
        if self.lengths:
            draw_gpu(self.title, self.lengths, self.folder / "gpu.png")

    def print(self, console: Console) -> None:
        """Print every table."""
        console.print(self.title)
        if self.small_costs is not None:
            console.print(_small_costs_table(self.small_costs))
        if self.ceilings is not None:
            console.print(
                f"ceilings measured here: {self.ceilings.flops_per_s / 1e12:.0f} TFLOP/s bf16, "
                f"{self.ceilings.bytes_per_s / 1e9:.0f} GB/s"
            )
        for title, rates in self.rates.items():
            console.print(_rates_table(title, rates))
        _print_stops(self.doorbell_stops, console)
        for length in sorted(self.lengths, key=lambda length: length.num_tokens):
            console.print(_length_table(length))


def _describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "num_multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }


def _small_costs_table(costs: "SmallCosts") -> Table:
    table = Table(title="Host time of one call, microseconds")
    values = asdict(costs)
    for name in values:
        table.add_column(name.removesuffix("_s").replace("_", " "), justify="right")
    table.add_row(*(f"{seconds * 1e6:.2f}" for seconds in values.values()))
    return table


def _rates_table(title: str, rates: "list[Rate]") -> Table:
    table = Table(title=title)
    table.add_column("call")
    for heading in ("ms", "achieved", "of ceiling"):
        table.add_column(heading, justify="right")
    for rate in rates:
        unit = "TFLOP/s" if rate.ceiling == "flops" else "GB/s"
        scale = 1e12 if rate.ceiling == "flops" else 1e9
        table.add_row(
            rate.name,
            f"{rate.seconds * 1e3:.3f}",
            f"{rate.achieved_per_s / scale:.0f} {unit}",
            f"{rate.share:.0%}",
        )
    return table


def _print_stops(stops: "list[DoorbellStop]", console: Console) -> None:
    if not stops:
        return
    stop_us = sorted(stop.stop_s * 1e6 for stop in stops)
    num_equal = sum(stop.is_bitwise_equal for stop in stops)
    num_early = sum(stop.num_tiles_done < stop.num_tiles for stop in stops)
    console.print(
        f"doorbell: {len(stops)} stops of a product of {stops[0].num_tiles} tiles, from the bell "
        f"to an idle device {stop_us[0]:.0f} / {median(stop_us):.0f} / {stop_us[-1]:.0f} us "
        f"(min / median / max); {num_early} stopped early; {num_equal} bitwise equal once resumed"
    )


def _length_table(length: LengthResult) -> Table:
    uncut_ms = median(length.uncut_s) * 1e3
    spread_ms = (max(length.uncut_s) - min(length.uncut_s)) * 1e3
    table = Table(
        title=f"{length.num_tokens} tokens: {uncut_ms:.2f} ms uncut (range {spread_ms:.2f} ms)"
    )
    table.add_column("cut")
    for heading in ("boundaries", "arrivals", "p50 ms", "mean ms", "p99 ms", "max ms", "tax"):
        table.add_column(heading, justify="right")
    for name, result in length.cuts.items():
        waits = result.waits
        values_ms = [s * 1e3 for s in (waits.p50_s, waits.mean_s, waits.p99_s, waits.max_s)]
        table.add_row(
            name,
            str(result.num_boundaries),
            str(waits.num_samples),
            *(f"{value:.3f}" for value in values_ms),
            f"{length.tax(name):+.1%}",
        )
    return table
