"""``python -m sglang_flowprefill top``: a running server's prefills, live in the terminal.

Asks ``GET /flowprefill/state`` once a second, as the live page does, and shows the same.
"""

import argparse
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sglang_flowprefill.api.state import (
    SCHEMA_VERSION,
    STATE_PATH,
    PrefillState,
    ServerState,
    SloClassState,
)
from sglang_flowprefill.errors import StateUnavailableError

_KEY_VARIABLE = "SGLANG_API_KEY"
_TIMEOUT_S = 5.0
_MAX_WAITING = 8


class _Version(msgspec.Struct):
    schema_version: int


def add_command(commands: Any) -> None:
    """Add the command to those of ``argparse``."""
    parser = commands.add_parser(
        "top", help="watch a running server in the terminal", description=__doc__
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:30000", help="of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get(_KEY_VARIABLE),
        metavar="KEY",
        help="the server's admin key, or its API key if it has no other (default: "
        f"${_KEY_VARIABLE}, which no list of processes shows)",
    )
    parser.add_argument(
        "--dp-rank", type=int, default=0, help="which data-parallel rank's scheduler"
    )
    parser.add_argument(
        "--interval-s", type=float, default=1.0, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.set_defaults(run=run, takes_server_flags=False)


def run(args: argparse.Namespace, _server_flags: Sequence[str]) -> None:
    """Show one picture, or pictures until Ctrl-C; a server that fails in between is asked again.

    Raises:
        StateUnavailableError: The first question is not answered.
    """
    console = Console()
    state = fetch_state(args.url, args.api_key, args.dp_rank)
    if args.once:
        console.print(picture(state))
        return
    # A wish of the user's, not an error: the last picture stays.
    try:
        with Live(picture(state), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(args.interval_s)
                live.update(_next_picture(args), refresh=True)
    except KeyboardInterrupt:
        return


def _next_picture(args: argparse.Namespace) -> RenderableType:
    try:
        return picture(fetch_state(args.url, args.api_key, args.dp_rank))
    except StateUnavailableError as error:
        return Text(f"{error}\nIt is asked again.", style="bold")


def fetch_state(url: str, api_key: str | None, dp_rank: int) -> ServerState:
    """Ask a server for its state.

    Args:
        url: Of the server, without a path.
        api_key: Sent if not None.
        dp_rank: Data-parallel rank.

    Raises:
        StateUnavailableError: It cannot be reached, refuses, or answers with something else.
    """
    address = f"{url.rstrip('/')}{STATE_PATH}?dp_rank={dp_rank}"
    if not address.startswith(("http://", "https://")):
        raise StateUnavailableError(f"{url} is no address: it starts with http:// or https://")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    question = urllib.request.Request(address, headers=headers)  # noqa: S310 (checked above)
    try:
        with urllib.request.urlopen(question, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return _decoded(answer.read(), address)
    except urllib.error.HTTPError as error:
        raise StateUnavailableError(_refusal(error, address)) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise StateUnavailableError(f"{url} cannot be reached: {reason}") from None


def _decoded(content: bytes, address: str) -> ServerState:
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version == SCHEMA_VERSION:
            return msgspec.json.decode(content, type=ServerState)
    except msgspec.MsgspecError as error:
        raise StateUnavailableError(f"{address} answers with something else: {error}") from None
    raise StateUnavailableError(
        f"{address} sends version {version} of the state and this command reads {SCHEMA_VERSION}: "
        "use the command of the release that serves"
    )


def _refusal(error: urllib.error.HTTPError, address: str) -> str:
    match error.code:
        case HTTPStatus.UNAUTHORIZED:
            return f"{address} wants another API key: pass --api-key or set {_KEY_VARIABLE}"
        case HTTPStatus.NOT_FOUND:
            return f"{address} does not exist: the server runs without FlowPrefill"
    try:
        said = msgspec.json.decode(error.read())["error"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        said = error.reason
    return f"HTTP {error.code} from {address}: {said}"


def picture(state: ServerState) -> Group:
    """Return all of a state as something that rich prints."""
    return Group(
        _headline(state),
        _classes_table(state.classes),
        _prefills_table(state.prefills),
        _waiting_table(state),
    )


def _headline(state: ServerState) -> Text:
    num_running = sum(prefill.state == "running" for prefill in state.prefills)
    blocking, error = state.blocking, state.prediction
    return Text(
        f"FlowPrefill {state.version}, policy {state.policy}, by {state.granularity}; "
        f"up {_duration(state.time_s - state.started_s)}\n"
        f"{state.num_waiting} waiting, {num_running} running, "
        f"{len(state.prefills) - num_running} suspended ({state.suspended_bytes / 1e6:.0f} MB), "
        f"{state.num_decoding} decoding\n"
        f"{state.rounds_per_s:.1f} rounds/s; blocking p50 {blocking.p50_s * 1e3:.1f} ms, "
        f"p99 {blocking.p99_s * 1e3:.1f} ms of {blocking.num_yields} yields; "
        f"{state.num_preemptions} preemptions, {state.num_resumes} resumes\n"
        + ("" if error is None else f"predictions off by {error.median_absolute_error:.1%}\n")
    )


def _classes_table(classes: Sequence[SloClassState]) -> Table:
    counts = ("first tokens", "arrived", "waiting", "refused", "put last")
    table = _table(("class", ""), ("attained", "objective", *counts))
    for entry in classes:
        share = entry.num_attained / entry.num_finished if entry.num_finished else None
        numbers = (
            entry.num_finished,
            entry.num_arrived,
            entry.num_waiting,
            entry.num_rejected,
            entry.num_degraded,
        )
        table.add_row(
            Text(entry.name),
            _bar(share or 0.0),
            "-" if share is None else f"{share:.1%}",
            "own" if entry.ttft_slo_ms is None else _duration(entry.ttft_slo_ms / 1e3),
            *map(str, numbers),
        )
    return table


def _prefills_table(prefills: Sequence[PrefillState]) -> Table:
    words = ("prefill", "request", "class", "state", "")
    table = _table(words, ("run / predicted", "tokens", "slack"))
    for prefill in prefills:
        num_others = len(prefill.request_ids) - 1
        table.add_row(
            str(prefill.batch_id),
            _as_sent(prefill.request_ids[0] + (f" +{num_others}" if num_others else "")),
            Text(prefill.slo_class),
            "waits for memory" if prefill.is_out_of_memory else prefill.state,
            _bar(prefill.run_s / prefill.predicted_s if prefill.predicted_s else 1.0),
            f"{_duration(prefill.run_s)} / {_duration(prefill.predicted_s)}",
            str(prefill.num_tokens),
            _duration(prefill.slack_s),
        )
    return table


def _waiting_table(state: ServerState) -> Table:
    table = _table(("waiting", "class"), ("tokens", "waited", "slack"))
    for entry in state.waiting[:_MAX_WAITING]:
        table.add_row(
            _as_sent(entry.request_id),
            Text(entry.slo_class),
            str(entry.num_tokens),
            _duration(entry.waited_s),
            _duration(entry.slack_s),
        )
    num_others = state.num_waiting - min(len(state.waiting), _MAX_WAITING)
    if num_others:
        table.add_row(f"and {num_others} more")
    return table


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in words:
        table.add_column(heading, max_width=28, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=min(max(share, 0.0), 1.0), width=16)


def _as_sent(text: str) -> Text:
    """Return what a caller chose, as text that sends nothing to the terminal but itself."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _duration(seconds: float) -> str:
    """Return seconds with three digits and a unit.

    >>> _duration(0.0123), _duration(-2.5), _duration(3720)
    ('12 ms', '-2.5 s', '1 h 2 min')
    """
    if abs(seconds) < 1.0:
        return f"{seconds * 1e3:.0f} ms"
    if abs(seconds) < 600.0:
        return f"{seconds:.1f} s" if abs(seconds) < 100.0 else f"{seconds:.0f} s"
    return f"{int(seconds // 3600)} h {int(seconds // 60) % 60} min"
