"""Searches one running system: solo prefills first, then probe after probe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from bench.goodput.options import ProbedWorkload
from bench.goodput.result import Load, Probe, Search, SystemResult
from bench.goodput.search import Verdict, bracket_of, next_rate
from bench.replaying.replay import ReplayOptions, replay_towards
from bench.replaying.row import RequestRow
from bench.results.progress import progress_bar
from bench.systems.client import http_session
from bench.systems.engine import Endpoint
from bench.systems.idle import prefill_timing
from bench.workloads.prompts import UniquePrompts
from bench.workloads.workload import Workload

# Long prompts need no repeating, since what disturbs them averages out within each.
_SOLO_PROMPTS = 3
_ENOUGH_SOLO_S = 5.0
_SOLO_QUANTILES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.85, 0.95, 1.0)
# A first guess: arrival order seldom survives more than this share of what a machine can do. A
# wrong guess costs probes, of which those above the answer end early.
_FIRST_GUESS_SHARE = 0.8
_FIRST_STEP = 1.15
# Where the answer is known, two probes may do, if they are no further apart than the resolution;
# a hair nearer, since rounding must not cost a third.
_KNOWN_STEP_SHARE = 0.999
# A server that was left in the middle of a probe is idle when it answers this short a prompt
# twice within this time, asked at most so often.
_IDLE_PROMPT_TOKENS = 16
_IDLE_S = 0.5
_MOST_IDLE_PROMPTS = 60


class Question(NamedTuple):
    """What one search asks; the fields are those of ``Search``."""

    seed: int
    slo_scale: float
    goal: float
    every_class: bool


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What to search for.

    Attributes:
        workload: By rate and seed.
        class_slos_s: At scale 1.
        replay: How requests are sent; its seed is replaced by that of each probe.
        seeds: To search with.
        slo_scales: Each searched.
        goals: Each searched, lowest first.
        resolution: Width of a bracket at which a search ends.
        lowest_rate_per_s: At which a search is given up.
        every_class: Whether to search too for the rate at which each class meets the goal.
        probe_rates_per_s: Replayed too, whole, at every scale with the first seed.
        loads: Replayed too, whole.
        start_rates_per_s: Where to begin with a system, by name, if somebody knows.
    """

    workload: ProbedWorkload
    class_slos_s: Mapping[str, float]
    replay: ReplayOptions
    seeds: tuple[int, ...]
    slo_scales: tuple[float, ...]
    goals: tuple[float, ...]
    resolution: float
    lowest_rate_per_s: float
    every_class: bool = False
    probe_rates_per_s: tuple[float, ...] = ()
    loads: tuple[Load, ...] = ()
    start_rates_per_s: Mapping[str, float] = field(default_factory=dict)

    def questions(self) -> list[Question]:
        """Return every search to do, in an order in which the earlier help the later."""
        return [
            Question(seed, scale, goal, every_class)
            for scale in self.slo_scales
            for goal in self.goals
            for every_class in ((False, True) if self.every_class else (False,))
            for seed in self.seeds
        ]

    def open_questions(self, result: SystemResult) -> list[Question]:
        """Return those that a result does not answer yet."""
        done = {Question(s.seed, s.slo_scale, s.goal, s.every_class) for s in result.searches}
        return [question for question in self.questions() if question not in done]

    def open_loads(self, result: SystemResult) -> list[Load]:
        """Return what is to be replayed whatever the searches find, and a result lacks."""
        at_rates = (
            Load(rate, self.seeds[0], scale)
            for scale in self.slo_scales
            for rate in self.probe_rates_per_s
        )
        return [load for load in (*at_rates, *self.loads) if result.probe_of(load) is None]

    def is_answered(self, result: SystemResult) -> bool:
        """Tell whether a result has everything."""
        return not (self.open_questions(result) or self.open_loads(result))


class SystemSearch:
    """Measures one system, and keeps what it finds.

    Args:
        plan: What to search for.
        result: Of this system; what it holds already is not measured again.
        server: Warm and idle.
        on_progress: Called whenever the result has grown.
        say: Called with a line for the user.
    """

    def __init__(
        self,
        plan: SearchPlan,
        result: SystemResult,
        server: Endpoint,
        *,
        on_progress: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._result = result
        self._server = server
        self._on_progress = on_progress
        self._say = say

    async def run(self) -> None:
        """Do every search that is not in the result yet.

        Raises:
            ServerError: The server died, or failed an unloaded prompt.
        """
        if not self._result.solo:
            self._result.solo = await self._solo_prefills()
            self._on_progress()
        for question in self._plan.open_questions(self._result):
            self._result.searches.append(await self._search(question))
            self._on_progress()
        for load in self._plan.open_loads(self._result):
            await self._probe(load, goal=0.0)

    async def _solo_prefills(self) -> list[tuple[int, float]]:
        plan = self._plan
        workload = plan.workload.spec.build()
        lengths = sorted(request.num_input_tokens for request in workload.requests)
        picked = {lengths[round(q * (len(lengths) - 1))] for q in _SOLO_QUANTILES}
        prompts = UniquePrompts(plan.replay.seed)
        solo = []
        async with http_session() as session:
            for num_tokens in sorted(picked):
                ttfts_s: list[float] = []
                while len(ttfts_s) < _SOLO_PROMPTS and sum(ttfts_s) < _ENOUGH_SOLO_S:
                    prompt = prompts.draw(num_tokens)
                    ttfts_s.append((await prefill_timing(session, self._server, prompt)).ttft_s)
                solo.append((num_tokens, median(ttfts_s)))
        return solo

    async def _search(self, question: Question) -> Search:
        plan = self._plan
        start_per_s, step = self._where_to_begin(question)
        while rate_per_s := next_rate(
            self._verdicts(question),
            start_per_s,
            step=step,
            resolution=plan.resolution,
            lowest_per_s=plan.lowest_rate_per_s,
        ):
            load = Load(rate_per_s, question.seed, question.slo_scale)
            await self._probe(load, question.goal)
        bracket = bracket_of(self._verdicts(question))
        self._say(
            f"{self._result.name}: seed {question.seed}, {question.goal:.0%}"
            f"{' of every class' if question.every_class else ''}, objectives "
            f"x{question.slo_scale:g}: {bracket.passed_per_s:.3f} requests/s"
        )
        return Search(
            **question._asdict(),
            max_rate_per_s=bracket.passed_per_s,
            failed_rate_per_s=bracket.failed_per_s,
        )

    def _where_to_begin(self, question: Question) -> tuple[float, float]:
        """Return a first rate and a first step, from the searches most like this one."""
        searches, kind = self._result.searches, question[1:]
        known_step = 1 + _KNOWN_STEP_SHARE * self._plan.resolution
        if alike := [s for s in searches if (s.slo_scale, s.goal, s.every_class) == kind]:
            return median(_answer_per_s(search) for search in alike), known_step
        if searches:
            return _answer_per_s(searches[-1]), _FIRST_STEP
        if known := self._plan.start_rates_per_s.get(self._result.name):
            return known, known_step
        requests = self._plan.workload.spec.build().requests
        limit_per_s = self._result.limit_per_s([r.num_input_tokens for r in requests])
        assert limit_per_s is not None, "solo prefills come first"
        return _FIRST_GUESS_SHARE * limit_per_s, _FIRST_STEP

    def _verdicts(self, question: Question) -> list[Verdict]:
        """Return what the probes so far say of a question."""
        probes = [
            probe
            for probe in self._result.probes
            if (probe.seed, probe.slo_scale) == (question.seed, question.slo_scale)
        ]
        met = [probe.meets(question.goal, every_class=question.every_class) for probe in probes]
        return [
            Verdict(probe.rate_per_s, passed)
            for probe, passed in zip(probes, met, strict=True)
            if passed is not None
        ]

    async def _probe(self, load: Load, goal: float) -> None:
        """Replay a load, until the goal is out of reach, and keep the result."""
        plan = self._plan
        workload = plan.workload.build(load.rate_per_s, load.seed)
        slos_s = {name: slo_s * load.slo_scale for name, slo_s in plan.class_slos_s.items()}
        rows, is_abandoned = await self._replay(workload, slos_s, goal, load.seed)
        if is_abandoned:
            await self._wait_until_idle(load.seed)
        probe = Probe(*load, len(workload.requests), is_abandoned, tuple(rows))
        self._result.probes.append(probe)
        self._on_progress()
        self._say(f"{self._result.name}: {_described(probe)}")

    async def _replay(
        self, workload: Workload, slos_s: Mapping[str, float], goal: float, seed: int
    ) -> tuple[list[RequestRow], bool]:
        # Other prompts in each probe, so that no cache has seen them.
        options = replace(self._plan.replay, seed=1000 * seed + len(self._result.probes))
        with progress_bar() as progress:
            label = f"{self._result.name}: {workload.rate_per_s:.2f}/s"
            task = progress.add_task(label, total=len(workload.requests))
            return await replay_towards(
                self._server,
                workload.requests,
                slos_s,
                options,
                goal=goal,
                on_finished=lambda _row: progress.advance(task),
            )

    async def _wait_until_idle(self, seed: int) -> None:
        prompts = UniquePrompts(2**31 + seed)
        num_quick = 0
        async with http_session() as session:
            for _ in range(_MOST_IDLE_PROMPTS):
                prompt = prompts.draw(_IDLE_PROMPT_TOKENS)
                timing = await prefill_timing(session, self._server, prompt)
                num_quick = num_quick + 1 if timing.ttft_s < _IDLE_S else 0
                if num_quick == 2:
                    return


def _answer_per_s(search: Search) -> float:
    """Return the rate near which the answer lies, if only from below."""
    return search.max_rate_per_s or search.failed_rate_per_s


def _described(probe: Probe) -> str:
    worst = probe.worst_class
    if worst is None:
        outcome = f"given up, at most {probe.attained:.1%} possible"
    else:
        outcome = f"{probe.attained:.1%} in time, worst class {worst[0]} {worst[1]:.1%}"
    return (
        f"seed {probe.seed}, objectives x{probe.slo_scale:g}, {probe.rate_per_s:.3f}/s: {outcome}"
    )
