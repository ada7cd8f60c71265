"""What there is to see while a burst runs: who is in time, late or waiting, class by class.

``Board`` is told of answers and draws itself whenever it is asked; what has been sent follows from
the clock, since an open loop sends at fixed times.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from time import perf_counter

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from bench.replaying.metrics import is_met, percentile
from bench.replaying.row import RequestRow
from bench.workloads.request import TraceRequest


class State(Enum):
    """How a request fares: its mark, its name, its style in a terminal that has colours."""

    TO_COME = (".", "to come", "dim")
    WAITING = ("?", "waiting", "yellow")
    OVERDUE = ("!", "waiting, late already", "bold red")
    IN_TIME = ("+", "in time", "green")
    LATE = ("x", "late", "red")

    @property
    def mark(self) -> str:
        """One character, which tells states apart without colours."""
        return self.value[0]

    @property
    def style(self) -> str:
        """Style of ``rich``."""
        return self.value[2]


class Board:
    """A burst on one system, as a renderable of ``rich``.

    Args:
        title: Above it.
        requests: Of the burst.
        slos_s: TTFT objective of every class, tightest first.
        clock: Seconds; the first request is sent when the board is made.
    """

    def __init__(
        self,
        title: str,
        requests: Sequence[TraceRequest],
        slos_s: Mapping[str, float],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._title = title
        self._requests = requests
        self._slos_s = slos_s
        self._clock = clock
        self._start_s = clock()
        self._rows: dict[int, RequestRow] = {}

    def on_finished(self, row: RequestRow) -> None:
        """Take note of an answer, or of a failure."""
        self._rows[row.index] = row

    def states(self) -> list[State]:
        """Return how each request fares now, in order of arrival."""
        now_s = self._clock() - self._start_s
        return [self._state(index, now_s) for index in range(len(self._requests))]

    def _state(self, index: int, now_s: float) -> State:
        request, row = self._requests[index], self._rows.get(index)
        slo_s = self._slos_s[request.slo_class]
        if row is not None:
            return State.IN_TIME if is_met(row) else State.LATE
        waited_s = now_s - (request.arrival_s - self._requests[0].arrival_s)
        if waited_s < 0:
            return State.TO_COME
        return State.WAITING if waited_s <= slo_s else State.OVERDUE

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a row of all requests, and a table of the classes."""
        states = self.states()
        legend = Text("   ").join(Text(f"{s.mark} {s.value[1]}", s.style) for s in State)
        yield Group(
            Text(f"{self._title}, {self._clock() - self._start_s:.0f} s", "bold"),
            *self._rows_of_requests(states),
            legend,
            self._table(states),
        )

    def _rows_of_requests(self, states: Sequence[State]) -> tuple[Text, Text]:
        """Write the first letter of each request's class, and its mark below."""
        letters, marks = Text(), Text()
        for request, state in zip(self._requests, states, strict=True):
            letters.append(request.slo_class[0], state.style)
            marks.append(state.mark, state.style)
        return letters, marks

    def _table(self, states: Sequence[State]) -> Table:
        table = Table()
        headings = ("class", "within", "in time", "late", "waiting", "TTFT p50 s", "p99 s")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for name, slo_s in self._slos_s.items():
            table.add_row(name, f"{slo_s:g} s", *self._cells(states, name))
        table.add_section()
        table.add_row("all", "", *self._cells(states, None))
        return table

    def _cells(self, states: Sequence[State], slo_class: str | None) -> list[str]:
        members = [i for i, r in enumerate(self._requests) if slo_class in {None, r.slo_class}]
        count = Counter(states[i] for i in members)
        answered = [self._rows[i].ttft_s for i in members if i in self._rows]
        known = [ttft_s for ttft_s in answered if ttft_s is not None]
        times = [f"{percentile(known, p):.2f}" if known else "-" for p in (0.5, 0.99)]
        late = count[State.LATE] + count[State.OVERDUE]
        waiting = count[State.WAITING] + count[State.OVERDUE]
        return [str(count[State.IN_TIME]), str(late), str(waiting), *times]
