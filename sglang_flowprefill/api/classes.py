"""The SLO classes of a server: what each gives, and what callers may claim.

``class_file.py`` reads them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sglang_flowprefill.api.matching import MatchRule
from sglang_flowprefill.core import ClassAttainment, Slo
from sglang_flowprefill.core.admission import AdmissionMode

DEFAULT_CLASS = "default"
"""Class of requests that name milliseconds and no class, and of all others on a server without."""

MIN_SLO_MS = 1.0
MAX_TTFT_SLO_MS = 7 * 24 * 3600 * 1000.0  # batch gateways send what is left of a job's days
MAX_TPOT_SLO_MS = 60 * 1000.0

# "none" and not "off": YAML reads an unquoted off as false.
Overload = Literal["reject", "degrade", "none"]
Authority = Literal["caller", "clamped", "rules"]

AUTHORITIES: Sequence[Authority] = get_args(Authority)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What callers may claim; what they claim beyond is moved to the bound.

    Attributes:
        min_ttft_slo_ms: Tightest TTFT objective.
        max_ttft_slo_ms: Loosest TTFT objective.
        min_tpot_slo_ms: Tightest TPOT objective.
        max_tpot_slo_ms: Loosest TPOT objective.
    """

    min_ttft_slo_ms: float = MIN_SLO_MS
    max_ttft_slo_ms: float = MAX_TTFT_SLO_MS
    min_tpot_slo_ms: float = MIN_SLO_MS
    max_tpot_slo_ms: float = MAX_TPOT_SLO_MS

    def ttft_ms(self, claimed_ms: float) -> float:
        """Return what a claimed TTFT objective counts as."""
        return min(max(claimed_ms, self.min_ttft_slo_ms), self.max_ttft_slo_ms)

    def tpot_ms(self, claimed_ms: float) -> float:
        """Return what a claimed TPOT objective counts as."""
        return min(max(claimed_ms, self.min_tpot_slo_ms), self.max_tpot_slo_ms)


NO_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class SloClass:
    """What the file says about one class.

    Attributes:
        ttft_slo_ms: Its TTFT objective; with ``predicted_factor`` the part that does not grow.
        tpot_slo_ms: Its TPOT objective; None for the server's.
        weight: What one first token in time is worth, in ``SloClasses.weighted_attainment``.
        overload: What becomes of a request that would miss its objective; None for what the
            server does.
        decode_first: Its decode steps do not wait for first tokens.
        predicted_factor: The objective grows by this many times the predicted prefill time.
        bounds: What callers of this class may claim.
    """

    ttft_slo_ms: float
    tpot_slo_ms: float | None = None
    weight: float = 1.0
    overload: Overload | None = None
    decode_first: bool = False
    predicted_factor: float = 0.0
    bounds: Bounds = NO_BOUNDS


@dataclass(frozen=True, slots=True)
class SloClasses:
    """The classes of a server.

    Attributes:
        by_name: In file order.
        default: What a request gets that names nothing and that no rule matches.
        rules: In file order; each gives one of ``by_name``.
        bounds: What callers may claim, whatever their class.
        authority: Who chooses: ``caller`` for everybody, within the bounds; ``clamped``: a caller
            may take a class that has no rules, or rules that hold, and ask for no more than it
            gives; ``rules``: callers choose nothing.
    """

    by_name: Mapping[str, SloClass]
    default: Slo
    rules: Sequence[MatchRule] = ()
    bounds: Bounds = NO_BOUNDS
    authority: Authority = "caller"

    @property
    def ttft_slo_ms(self) -> Mapping[str, float]:
        """TTFT objectives by class name."""
        return {name: entry.ttft_slo_ms for name, entry in self.by_name.items()}

    @property
    def matched_headers(self) -> frozenset[str]:
        """Lower-case names of the headers that rules look at."""
        return frozenset(name for rule in self.rules for name in rule.headers)

    @property
    def matches_models(self) -> bool:
        """True if a rule looks at the body's ``model``."""
        return any(rule.model is not None for rule in self.rules)

    def slo(
        self, class_name: str, ttft_slo_ms: float | None = None, tpot_slo_ms: float | None = None
    ) -> Slo:
        """Return the objectives of a class, with those replaced that are given.

        Args:
            class_name: Of the file, or ``DEFAULT_CLASS`` if ``ttft_slo_ms`` is given.
            ttft_slo_ms: What the caller asks for.
            tpot_slo_ms: What the caller asks for.
        """
        entry = self.by_name.get(class_name)
        if entry is not None and tpot_slo_ms is None:
            tpot_slo_ms = entry.tpot_slo_ms
        is_claimed = ttft_slo_ms is not None
        if ttft_slo_ms is None:
            ttft_slo_ms = self.by_name[class_name].ttft_slo_ms
        tpot_s = None if tpot_slo_ms is None else tpot_slo_ms / 1000.0
        decode_first = entry is not None and entry.decode_first
        grows = entry is not None and not is_claimed
        factor = entry.predicted_factor if grows and entry is not None else 0.0
        return Slo(ttft_slo_ms / 1000.0, class_name, tpot_s, decode_first, factor)

    def claimed_slo(
        self, class_name: str, ttft_slo_ms: float | None, tpot_slo_ms: float | None
    ) -> Slo:
        """Return what a caller's claim counts as: within the bounds of the server and the class.

        Args:
            class_name: As for ``slo``.
            ttft_slo_ms: What the caller asks for.
            tpot_slo_ms: What the caller asks for.
        """
        entry = self.by_name.get(class_name)
        for bounds in (self.bounds, NO_BOUNDS if entry is None else entry.bounds):
            ttft_slo_ms = None if ttft_slo_ms is None else bounds.ttft_ms(ttft_slo_ms)
            tpot_slo_ms = None if tpot_slo_ms is None else bounds.tpot_ms(tpot_slo_ms)
        if self.authority == "clamped":
            own = self.default if entry is None else self.slo(class_name)
            if ttft_slo_ms is not None and ttft_slo_ms < own.ttft_s * 1000.0:
                ttft_slo_ms = None if entry is not None else own.ttft_s * 1000.0
            if tpot_slo_ms is not None and own.tpot_s is not None:
                tpot_slo_ms = max(tpot_slo_ms, own.tpot_s * 1000.0)
        return self.slo(class_name, ttft_slo_ms, tpot_slo_ms)

    def admission_mode(self, class_name: str, server_mode: AdmissionMode) -> AdmissionMode:
        """Return what becomes of a request of this class that would miss its objective.

        Args:
            class_name: Of any request.
            server_mode: For classes that do not say, and requests of none.
        """
        entry = self.by_name.get(class_name)
        if entry is None or entry.overload is None:
            return server_mode
        return "off" if entry.overload == "none" else entry.overload

    def admission_modes(self, server_mode: AdmissionMode) -> set[AdmissionMode]:
        """Return what may become of a hopeless request, of any class or none."""
        return {server_mode} | {self.admission_mode(name, server_mode) for name in self.by_name}

    def weighted_attainment(self, attainment: Mapping[str, ClassAttainment]) -> float | None:
        """Return the share of first tokens in time, each counted as often as its class's weight.

        Returns:
            None before the first token.
        """
        weights = {
            name: self.by_name[name].weight if name in self.by_name else 1.0 for name in attainment
        }
        total = sum(weights[name] * done.num_finished for name, done in attainment.items())
        attained = sum(weights[name] * done.num_attained for name, done in attainment.items())
        return attained / total if total else None


def ttft_problem(value_ms: float) -> str | None:
    """Return what is wrong with a TTFT objective, None if nothing is.

    0 is one that has expired: served, and late whenever it is.
    """
    if value_ms == 0.0:
        return None
    return range_problem(value_ms, MAX_TTFT_SLO_MS)


def tpot_problem(value_ms: float) -> str | None:
    """Return what is wrong with a TPOT objective, None if nothing is."""
    return range_problem(value_ms, MAX_TPOT_SLO_MS)


def range_problem(value_ms: float, max_ms: float) -> str | None:
    """Return what is wrong with an objective of at most ``max_ms``, None if nothing is."""
    if math.isfinite(value_ms) and MIN_SLO_MS <= value_ms <= max_ms:
        return None
    return f"must be between {MIN_SLO_MS:.0f} and {max_ms:.0f} milliseconds"
