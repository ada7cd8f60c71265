"""Systems under test: engines with the flags that make a setting of them.

Every system gets the same model, device and prefix caching, from one place. What differs is the
system itself: ``flowprefill`` is this package's launcher; ``flowprefill-fcfs`` is the same engine
and kernels without preemption, which tells the gain of scheduling apart from the gain of faster
kernels; ``stock`` is SGLang's, with scheduling as SGLang chooses it (overlap, chunked prefill);
``stock-tuned`` is stock without both, which on a CPU gives it earlier first tokens;
``stock-kernel`` and ``stock-tuned-kernel`` are those with our CPU kernels and nothing else of
ours; ``stock-priority-kernel`` has priorities by objective besides, and prefills one by one.
``vllm`` is vLLM as it comes; ``vllm-tuned`` has priorities by objective, and steps so short that
an urgent prompt need not wait long for the running one.

A name may go on with flags of the engine, each after a plus sign and without its dashes, such as
``stock-kernel+schedule-policy=hrrn+chunked-prefill-size=512``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.errors import UsageError
from bench.systems.engine import Engine, Launch, ServerOptions
from bench.systems.sglang import FLOWPREFILL, STOCK, STOCK_WITH_KERNELS
from bench.systems.vllm import VLLM


@dataclass(frozen=True, slots=True)
class System:
    """A way to start a server.

    Attributes:
        engine: What is started.
        flags: That make it this system.
    """

    engine: Engine
    flags: tuple[str, ...] = ()

    def with_flags(self, flags: tuple[str, ...]) -> "System":
        """Return it with more flags, and an engine that speaks as they ask."""
        all_flags = (*self.flags, *flags)
        return System(self.engine.speaking_as(all_flags), all_flags)


_WITHOUT_OVERLAP_AND_CHUNKS = ("--disable-overlap-schedule", "--chunked-prefill-size", "-1")
# The best setting of SGLang's own scheduler that we know on a CPU: the tightest objective first,
# and no prompt in company that an urgent one would have to wait for too.
_PRIORITIES_ONE_BY_ONE = (
    *_WITHOUT_OVERLAP_AND_CHUNKS,
    *("--enable-priority-scheduling", "--schedule-low-priority-values-first"),
    *("--prefill-max-requests", "1"),
)
_PRIORITIES_AND_SHORT_STEPS = (
    *("--scheduling-policy", "priority"),
    *("--max-num-batched-tokens", "256"),
    *("--long-prefill-token-threshold", "64"),
)

SYSTEMS: Mapping[str, System] = {
    "flowprefill": System(FLOWPREFILL),
    "flowprefill-fcfs": System(FLOWPREFILL, ("--flowprefill-policy", "fcfs")),
    "stock": System(STOCK),
    "stock-tuned": System(STOCK, _WITHOUT_OVERLAP_AND_CHUNKS),
    "stock-kernel": System(STOCK_WITH_KERNELS),
    "stock-tuned-kernel": System(STOCK_WITH_KERNELS, _WITHOUT_OVERLAP_AND_CHUNKS),
    "stock-priority-kernel": System(STOCK_WITH_KERNELS, _PRIORITIES_ONE_BY_ONE),
    "vllm": System(VLLM),
    "vllm-tuned": System(VLLM, _PRIORITIES_AND_SHORT_STEPS),
}


def system_named(name: str) -> System:
    """Return a system by its name, and the flags that the name goes on with.

    Raises:
        UsageError: There is none.
    """
    base, *settings = name.split("+")
    if base not in SYSTEMS:
        raise UsageError(f"unknown system {base!r}; know {','.join(SYSTEMS)}")
    flags: list[str] = []
    for setting in settings:
        flag, has_value, value = setting.partition("=")
        flags += [f"--{flag}", value] if has_value else [f"--{flag}"]
    return SYSTEMS[base].with_flags(tuple(flags))


def plan_launch(name: str, options: ServerOptions, port: int) -> Launch:
    """Decide how a system is started.

    Raises:
        FlowPrefillError: The embedded model is asked for and cannot be had.
        BenchError: There is no such system, its engine is not installed, or it cannot run with
            these options.
    """
    system = system_named(name)
    flags = (*system.flags, *options.flags, *options.flags_for.get(name, ()))
    return system.engine.launch(options, flags, port)
