"""``python -m sglang_flowprefill profile``: measure prefill costs, show how well they fit.

Starts an engine with the same flags as the server would have, so that what is measured and
cached is what that server will use.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sglang_flowprefill.launch_server import complete_arguments

if TYPE_CHECKING:
    from sglang_flowprefill.executor import ProfileSample


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "profile",
        help="measure what prefills cost here, for the server's predictor",
        description=__doc__,
        epilog="All other flags are those of python -m sglang_flowprefill.launch_server.",
    )
    parser.add_argument(
        "--cached", action="store_true", help="show the profile that is cached, if there is one"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw fit and residuals")
    parser.set_defaults(run=run, takes_server_flags=True)


def run(args: argparse.Namespace, server_flags: Sequence[str]) -> None:
    """Measure, or fetch what is cached; print a table; draw a picture if one is wanted.

    Raises:
        FlowPrefillError: A flag is wrong, or the engine does not fit.
        SystemExit: SGLang cannot start.
    """
    flags = complete_arguments(
        [
            *([] if args.cached else ["--flowprefill-profile-again"]),
            *([] if _sets_log_level(server_flags) else ["--log-level", "error"]),
            *server_flags,
        ]
    )
    from sglang_flowprefill.adapter.launch import profile_path  # noqa: PLC0415 (loads SGLang)
    from sglang_flowprefill.adapter.serving.profile import read_samples  # noqa: PLC0415

    path = profile_path(flags)
    samples = read_samples(path)
    console = Console()
    console.print(profile_table(samples))
    console.print(f"kept in {path}")
    if args.plot is not None:
        from sglang_flowprefill.commands.profile_figure import draw_profile  # noqa: PLC0415

        draw_profile(samples, args.plot)
        console.print(f"drawn in {args.plot}")


def profile_table(samples: Sequence["ProfileSample"]) -> Table:
    """Return measured and fitted times side by side, and what the fit says."""
    from sglang_flowprefill.executor import (  # noqa: PLC0415 (loads torch)
        fit_prefill_cost,
        saturation_tokens,
    )

    cost = fit_prefill_cost(samples)
    table = Table(
        title="Prefill costs",
        caption=f"{cost.base_s * 1e3:.2f} ms + {cost.per_request_s * 1e3:.2f} ms a sequence + "
        f"{cost.per_token_s * 1e6:.1f} us a token + {cost.per_attention_pair_s * 1e9:.2f} ns a "
        f"query-key pair; throughput saturates at {saturation_tokens(samples)} tokens",
    )
    for heading in ("prefill", "measured ms", "fitted ms", "off"):
        table.add_column(heading, justify="left" if heading == "prefill" else "right")
    for sample in samples:
        fitted_s = sample.predicted_s(cost)
        table.add_row(
            str(sample.shape),
            f"{sample.duration_s * 1e3:.1f}",
            f"{fitted_s * 1e3:.1f}",
            f"{fitted_s / sample.duration_s - 1:+.1%}",
        )
    return table


def _sets_log_level(flags: Sequence[str]) -> bool:
    return any(flag.partition("=")[0] == "--log-level" for flag in flags)
