"""``python -m bench.timeline_figure``: the picture of docs/how-to/read-the-timeline.md.

Starts a server with its timeline on, sends one long prompt and short ones while it prefills, and
draws what the trace file says of it: the same slices that Perfetto shows.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: machines that measure have no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.blocking.waits import Window, running_in
from bench.systems.client import http_session, timed_prompt
from bench.systems.engine import ServerOptions
from bench.systems.servers import running_server
from bench.workloads.prompts import UniquePrompts
from sglang_flowprefill.observe.timeline_reader import RecordedTimeline, RunningSlice, read_timeline

LONG_TOKENS = 4000
SHORT_TOKENS = 32
NUM_SHORT = 6
_PAUSE_S = 0.4
_LIMIT_S = 600.0
_ZOOM_S = 0.06  # before and after the yield

_COLOURS = mpl.color_sequences["tab10"]
_OTHER = "other"
_KINDS = {  # last part of an operator's name: what it is drawn as
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm",
    "qkv_proj": "QKV GEMM",
    "attn": "attention",
    "attention tile": "attention",
    "o_proj": "output GEMM",
    "gate_up_proj": "gate-up GEMM",
    "down_proj": "down GEMM",
}


async def record(trace: Path, log: Path) -> Window:
    """Serve a long prompt and short ones with the timeline on; return when that was.

    Raises:
        ServerError: The server cannot be measured, or a prompt failed.
    """
    options = ServerOptions(flags=("--flowprefill-trace", str(trace)))
    async with running_server("flowprefill", options, log, LONG_TOKENS) as server:
        start_s = time.monotonic()
        prompts = UniquePrompts(0)
        sends = [(prompts.draw(LONG_TOKENS), 600.0)]
        sends += [(prompts.draw(SHORT_TOKENS), 2.0) for _ in range(NUM_SHORT)]
        async with http_session() as session:
            tasks = []
            for prompt, slo_s in sends:
                answer = timed_prompt(session, server.endpoint, prompt, _LIMIT_S, slo_ttft_s=slo_s)
                tasks.append(asyncio.create_task(answer))
                await asyncio.sleep(_PAUSE_S)
            await asyncio.gather(*tasks)
        return Window(start_s, time.monotonic())


def draw_timeline(recorded: RecordedTimeline, window: Window, path: Path) -> None:
    """Draw all prefills of the window, and the surroundings of one suspension."""
    slices = sorted(running_in(recorded, window), key=lambda s: s.start_s)
    origin_s = slices[0].start_s
    lanes = {batch_id: lane for lane, batch_id in enumerate(dict.fromkeys(_batches(slices)))}
    figure, (overview, zoom) = plt.subplots(
        2, 1, figsize=(10, 6.4), height_ratios=(1, 1), layout="constrained"
    )
    for slice_ in slices:
        is_long = lanes[slice_.batch_id] == 0
        _bar(overview, slice_, lanes, origin_s, _COLOURS[0 if is_long else 1])
    rounds_s = [r.time_s - origin_s for r in recorded.rounds if window.holds(r.time_s)]
    overview.plot(rounds_s, [-1] * len(rounds_s), "k|", markersize=9)
    _label_lanes(overview, lanes)
    overview.set(xlabel="s", title="running slices and scheduling rounds", xlim=(-0.05, None))
    _draw_suspension(zoom, slices, lanes, origin_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _batches(slices: Sequence[RunningSlice]) -> list[int]:
    return [slice_.batch_id for slice_ in slices]


def _bar(
    axis: Axes,
    slice_: RunningSlice,
    lanes: dict[int, int],
    origin_s: float,
    colour: tuple[float, float, float],
) -> None:
    duration_s = slice_.end_s - slice_.start_s
    axis.barh(
        lanes[slice_.batch_id], duration_s, 0.7, slice_.start_s - origin_s, color=colour, alpha=0.7
    )


def _label_lanes(axis: Axes, lanes: dict[int, int]) -> None:
    prompts = [f"{LONG_TOKENS} tokens", *[f"{SHORT_TOKENS} tokens"] * (len(lanes) - 1)]
    names = [
        f"prefill {batch_id} ({prompt})" for batch_id, prompt in zip(lanes, prompts, strict=True)
    ]
    axis.set_yticks([-1, *lanes.values()], ["scheduler", *names])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)


def _draw_suspension(
    axis: Axes, slices: Sequence[RunningSlice], lanes: dict[int, int], origin_s: float
) -> None:
    """Draw the operators around the second yield of the long prefill, or its only one."""
    yields = [s for s in slices if s.end == "yield" and lanes[s.batch_id] == 0]
    before = yields[min(1, len(yields) - 1)]
    after = next(s for s in slices if s.batch_id == before.batch_id and s.start_s >= before.end_s)
    start_s, end_s = before.end_s - _ZOOM_S, after.start_s + _ZOOM_S
    shown = [s for s in slices if s.end_s > start_s and s.start_s < end_s]
    rows = {batch_id: row for row, batch_id in enumerate(dict.fromkeys(_batches(shown)))}
    colours = {kind: _COLOURS[i] for i, kind in enumerate(dict.fromkeys(_KINDS.values()))}
    for slice_ in shown:
        for operator in slice_.operators:
            kind = _KINDS.get(operator.name.rpartition(".")[2], _OTHER)
            axis.barh(
                rows[slice_.batch_id],
                (operator.end_s - operator.start_s) * 1000,
                0.7,
                (operator.start_s - start_s) * 1000,
                color=colours.get(kind, "grey"),
                edgecolor="white",
                linewidth=0.2,
            )
    for kind, colour in {**colours, _OTHER: "grey"}.items():
        axis.barh(0, 0, color=colour, label=kind)
    axis.set_yticks(list(rows.values()), [f"prefill {batch_id}" for batch_id in rows])
    axis.invert_yaxis()
    blocking_ms = (before.blocking_s or 0.0) * 1000
    axis.axvline(_ZOOM_S * 1000, color="black", linewidth=0.8, linestyle="--")
    axis.set(
        xlim=(0, (end_s - start_s) * 1000),
        xlabel=f"ms; zero is {start_s - origin_s:.2f} s above",
        title=f"one suspension, operator by operator; dashed: yield, at most {blocking_ms:.1f} ms "
        f"after its cause ({', '.join(before.causes)})",
    )
    axis.figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
    )


def main() -> None:
    """Record and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/timeline.png"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        window = asyncio.run(record(trace, Path(folder) / "server.log"))
        draw_timeline(read_timeline(trace), window, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
