"""What ``blocking`` sends, to which servers, and how the command line says so."""

import argparse
from dataclasses import dataclass, fields, replace

from bench.arguments import positive_float, positive_int, positive_lengths, some_of
from bench.blocking.tax import TaxOptions
from bench.systems.engine import ServerOptions

GRANULARITIES = ("chunk", "layer", "operator", "tiled")
PARTS = ("blocking", "tax")
TAX_REFERENCE = "off"
TAX_SYSTEMS = ("operator", "tiled", "stock")


@dataclass(frozen=True, slots=True)
class BlockingOptions:
    """What is sent.

    Attributes:
        granularities: Of ``GRANULARITIES``, in the order to measure.
        lengths: Of the running prompt.
        num_samples: Urgent prompts for each length.
        num_solo: Long prompts alone, for each length.
        spread_s: Each urgent prompt is sent up to this long after the one before was answered;
            longer for long prompts, which the samples shall reach through, and shorter for short.
        urgent_tokens: Length of the urgent prompts.
        num_idle: Urgent prompts on the idle server.
        switch_tokens: Length of the prompt that is suspended again and again.
        num_switch: Urgent prompts sent one by one during it, if they fit.
        num_switch_prompts: How many such prompts.
        chunk_tokens: Chunk of granularity ``chunk``.
        max_operator_ms: Tile of granularity ``tiled``; None: the server's default.
        tax_systems: Of ``TAX_SYSTEMS``, to compare with the reference.
        tax_rounds: How often each system is asked.
        tax_tokens: Long prompt of the throughput tax.
        num_tax_short: Short prompts in each of its rounds.
        parts: Of ``PARTS``.
        seed: Of prompts and moments.
    """

    granularities: tuple[str, ...] = GRANULARITIES
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8000, 32_768)
    num_samples: int = 100
    num_solo: int = 2
    spread_s: float = 0.2
    urgent_tokens: int = 32
    num_idle: int = 20
    switch_tokens: int = 4096
    num_switch: int = 20
    num_switch_prompts: int = 3
    chunk_tokens: int = 512
    max_operator_ms: float | None = None
    tax_systems: tuple[str, ...] = TAX_SYSTEMS
    tax_rounds: int = 10
    tax_tokens: int = 4096
    num_tax_short: int = 10
    parts: tuple[str, ...] = PARTS
    seed: int = 0

    @property
    def num_steps(self) -> int:
        """Requests that measuring one granularity takes, about."""
        num_of_length = self.num_solo + self.num_samples
        num_of_switch = self.num_solo + self.num_switch_prompts * (self.num_switch + 1)
        return self.num_idle + len(self.lengths) * num_of_length + num_of_switch

    @property
    def num_context_tokens(self) -> int:
        """Tokens of the longest prompt and its output."""
        return max(*self.lengths, self.switch_tokens) + 1

    @property
    def tax(self) -> TaxOptions:
        """What the throughput tax sends."""
        return TaxOptions(
            rounds=self.tax_rounds,
            long_tokens=self.tax_tokens,
            num_short=self.num_tax_short,
            seed=self.seed,
        )


FULL = BlockingOptions()
QUICK = BlockingOptions(
    lengths=(512, 1024),
    num_samples=6,
    num_solo=1,
    num_idle=3,
    switch_tokens=1024,
    num_switch=3,
    num_switch_prompts=1,
    tax_rounds=2,
    tax_tokens=1024,
    num_tax_short=3,
)


def granularity_flags(name: str, options: BlockingOptions) -> tuple[str, ...]:
    """Return the flags that make a server preempt at this granularity."""
    tile_ms = options.max_operator_ms
    return {
        "chunk": (
            "--flowprefill-granularity",
            "chunk",
            "--flowprefill-max-chunk-tokens",
            str(options.chunk_tokens),
        ),
        "layer": ("--flowprefill-granularity", "layer", "--flowprefill-max-operator-ms", "0"),
        "operator": ("--flowprefill-granularity", "operator", "--flowprefill-max-operator-ms", "0"),
        "tiled": (
            "--flowprefill-granularity",
            "operator",
            *(() if tile_ms is None else ("--flowprefill-max-operator-ms", f"{tile_ms:g}")),
        ),
    }[name]


def tax_systems(options: BlockingOptions) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the systems of the throughput tax: the bench's name of each, and its flags.

    ``off`` is FlowPrefill's engine and kernels without preemption; ``stock`` is SGLang without
    overlap and chunking, with kernels of its own.
    """
    known = {
        TAX_REFERENCE: ("flowprefill", ("--flowprefill-granularity", "off")),
        "operator": ("flowprefill", granularity_flags("operator", options)),
        "tiled": ("flowprefill", granularity_flags("tiled", options)),
        "stock": ("stock-tuned", ()),
    }
    return {name: known[name] for name in (TAX_REFERENCE, *options.tax_systems)}


def add_blocking_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is sent, and to which servers."""
    group = parser.add_argument_group("blocking time")
    group.add_argument("--quick", action="store_true", help="small defaults: minutes, not an hour")
    group.add_argument("--parts", type=some_of(PARTS), help=f"some of {','.join(PARTS)}")
    group.add_argument(
        "--granularities", type=some_of(GRANULARITIES), help=f"some of {','.join(GRANULARITIES)}"
    )
    group.add_argument(
        "--tax-systems",
        type=some_of(TAX_SYSTEMS),
        help=f"some of {','.join(TAX_SYSTEMS)}, to compare with {TAX_REFERENCE}",
    )
    group.add_argument(
        "--lengths", type=positive_lengths, help="of the running prompt, comma-separated"
    )
    for name, help_text in _NUMBERS.items():
        group.add_argument("--" + name.replace("_", "-"), type=positive_int, help=help_text)
    group.add_argument("--spread-s", type=positive_float, help="longest pause before each of them")
    group.add_argument("--max-operator-ms", type=positive_float, help="tile of granularity tiled")
    group.add_argument("--seed", type=int, help="of prompts and moments")
    servers = parser.add_argument_group("servers")
    servers.add_argument("--model-path", help="folder; default: the embedded model")
    servers.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    servers.add_argument("--dtype", help="default: that of the device")
    servers.add_argument(
        "--server-flags", type=str.split, default=[], help="more flags, for every server"
    )
    servers.add_argument("--startup-timeout-s", type=positive_float, default=600.0)


_NUMBERS = {
    "num_samples": "urgent prompts for each length",
    "num_solo": "long prompts alone, for each length",
    "urgent_tokens": "length of the urgent prompts",
    "num_idle": "urgent prompts on the idle server",
    "switch_tokens": "length of the prompt that is suspended again and again",
    "num_switch": "urgent prompts sent one by one during it",
    "num_switch_prompts": "how many such prompts",
    "chunk_tokens": "chunk of granularity chunk",
    "tax_rounds": "how often each system is asked for the throughput tax",
    "tax_tokens": "long prompt of the throughput tax",
    "num_tax_short": "short prompts in each of its rounds",
}


def blocking_options(args: argparse.Namespace) -> BlockingOptions:
    """Collect the options; what is not given comes from the quick or the full defaults."""
    names = {spec.name for spec in fields(BlockingOptions)}
    given = {name: value for name, value in vars(args).items() if name in names}
    preset = QUICK if args.quick else FULL
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def server_options(args: argparse.Namespace) -> ServerOptions:
    """Collect the options that all servers share."""
    return ServerOptions(
        model_path=args.model_path,
        device=args.device,
        dtype=args.dtype,
        flags=tuple(args.server_flags),
        startup_timeout_s=args.startup_timeout_s,
    )
