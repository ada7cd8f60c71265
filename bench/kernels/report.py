"""Tables, result file and picture of the kernel bench."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from rich.table import Table

from bench.comparison.report import result_head
from bench.kernels.model_shape import ModelShape
from bench.kernels.roofline import Measurement, Roof
from bench.kernels.whole_prefill import WholePrefill

_COLOURS = mpl.color_sequences["tab10"]
_SEED = 0  # random inputs; times do not depend on them


def kernel_table(title: str, measurements: Sequence[Measurement]) -> Table:
    """Return the kernels as a table."""
    table = Table(title=title)
    table.add_column("kernel")
    for heading in ("fastest us", "median us", "GFLOP/s", "GB/s", "bound", "of roof", "torch us"):
        table.add_column(heading, justify="right")
    for m in measurements:
        table.add_row(
            m.name,
            f"{m.seconds * 1e6:.1f}",
            f"{m.median_s * 1e6:.1f}",
            f"{m.flops_per_s / 1e9:.1f}",
            f"{m.bytes_per_s / 1e9:.1f}",
            m.bound,
            f"{m.roof_share:.0%}",
            "-" if m.reference_s is None else f"{m.reference_s * 1e6:.1f}",
        )
    return table


def prefill_table(prefills: Sequence[WholePrefill]) -> Table:
    """Return whole prefills as a table, times of families in seconds."""
    table = Table(title="Whole prefills: share of the GEMM rate, and where the time goes")
    for heading in ("tokens", "fastest s", "median s", "of GEMM rate"):
        table.add_column(heading, justify="right")
    families = list(prefills[0].family_s) if prefills else []
    for family in families:
        table.add_column(f"{family} s", justify="right")
    for p in prefills:
        table.add_row(
            str(p.num_tokens),
            f"{p.seconds:.3f}",
            f"{p.median_s:.3f}",
            f"{p.gemm_share:.0%}",
            *(f"{p.family_s[family]:.3f}" for family in families),
        )
    return table


@dataclass(frozen=True, slots=True)
class KernelResult:
    """All that was measured.

    Attributes:
        title: Says of what, on what.
        shape: Sizes of the model.
        roof: Peaks of the machine.
        kernels: Alone.
        whole_prefills: On a server.
    """

    title: str
    shape: ModelShape
    roof: Roof
    kernels: Sequence[Measurement]
    whole_prefills: Sequence[WholePrefill]


def result_document(result: KernelResult, config: dict[str, Any]) -> dict[str, Any]:
    """Return the result as JSON-safe data; every field is documented on its dataclass."""
    return result_head(result.title, config, _SEED) | asdict(result)


def draw_kernels(result: KernelResult, path: Path) -> None:
    """Write the picture as PNG: the roofline, and where whole prefills spend their time."""
    measurements, roof = result.kernels, result.roof
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    families = list(dict.fromkeys(m.family for m in measurements))
    for colour, family in zip(_COLOURS, families, strict=False):
        rows = [m for m in measurements if m.family == family]
        intensities = [m.flops_per_s / m.bytes_per_s for m in rows]
        left.scatter(intensities, [m.flops_per_s / 1e9 for m in rows], color=colour, label=family)
    ridge = roof.flops_per_s / roof.bytes_per_s
    corners = [0.1, ridge, max(10 * ridge, 1e4)]
    left.plot(corners, [min(roof.flops_per_s, x * roof.bytes_per_s) / 1e9 for x in corners], "k-")
    left.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    left.legend(frameon=False)
    _draw_prefills(right, result.whole_prefills)
    figure.suptitle(result.title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_prefills(axis: Any, prefills: Sequence[WholePrefill]) -> None:
    names = [f"{p.num_tokens}\n{p.gemm_share:.0%}" for p in prefills]
    bottoms = [0.0] * len(prefills)
    families = list(prefills[0].family_s) if prefills else []
    for colour, family in zip(_COLOURS, families, strict=False):
        shares = [max(0.0, p.family_s[family] / p.seconds) for p in prefills]
        axis.bar(names, shares, bottom=bottoms, color=colour, label=family)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    axis.set(xlabel="prompt tokens, and share of the GEMM rate", ylabel="share of time")
    if families:
        axis.legend(frameon=False)
