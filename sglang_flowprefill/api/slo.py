"""From what a caller wrote to one validated ``Slo``.

Sources, all optional: headers (``HEADERS`` lists them with their aliases) and the body
(``body.py``). Sources that disagree are an error, not a precedence rule. Milliseconds beat the
class's own value, within the bounds that the server sets. A request that names neither TTFT
milliseconds nor a class gets the class of the first rule that holds (``matching.py``), else the
server's default.

Two processes take part. The one that speaks HTTP validates, decides as far as it can, and writes
a *stamp* into ``custom_params``. Rules that ask for the length of the prompt are decided by the
scheduler process, which reads the stamp and knows the length; they travel by name.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sglang_flowprefill.api.body import CLASS_KEY, SLO_KEYS, TPOT_SLO_KEY, TTFT_SLO_KEY
from sglang_flowprefill.api.class_file import load_slo_classes
from sglang_flowprefill.api.classes import (
    DEFAULT_CLASS,
    SloClass,
    SloClasses,
    tpot_problem,
    ttft_problem,
)
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import SloError, quoted

__all__ = ["HeaderSlo", "SloClass", "SloClasses", "SloResolver", "load_slo_classes"]

ARRIVAL_KEY = "flowprefill_arrival_unix_s"
"""Written by the server, overwritten if a caller sends it: callers do not choose their arrival."""

RULES_KEY = "flowprefill_slo_rules"
"""Written by the server: classes of rules that hold for prompts of a length, with that length."""

FACTOR_KEY = "flowprefill_slo_factor"
"""Written by the server: the objective grows by this many times the predicted prefill time."""

TTFT_SLO_HEADER = "x-slo-ttft-ms"
TPOT_SLO_HEADER = "x-slo-tpot-ms"
CLASS_HEADER = "x-slo-class"

HEADERS: Mapping[str, str] = {
    TTFT_SLO_HEADER: TTFT_SLO_HEADER,
    "x-llm-d-slo-ttft-ms": TTFT_SLO_HEADER,
    "x-request-id-slo-ttft-ms": TTFT_SLO_HEADER,
    TPOT_SLO_HEADER: TPOT_SLO_HEADER,
    "x-llm-d-slo-tpot-ms": TPOT_SLO_HEADER,
    "x-request-id-slo-tpot-ms": TPOT_SLO_HEADER,
    CLASS_HEADER: CLASS_HEADER,
    "x-request-id-slo-class": CLASS_HEADER,
}
"""Headers that state an SLO, with what each stands for: llm-d's names, and names that
sglang-router forwards, which drops unknown headers but those that begin with ``x-request-id``."""

_SERVER_KEYS = frozenset({ARRIVAL_KEY, RULES_KEY, FACTOR_KEY})

Problem = Callable[[float], str | None]


@dataclass(frozen=True, slots=True)
class HeaderSlo:
    """What one HTTP request says for all of its prompts, read and checked once.

    Attributes:
        arrival_unix_s: When its body was in; None if that is not known yet.
        ttft_slo_ms: TTFT objective in milliseconds, from a header.
        class_name: SLO class, from a header.
        tpot_slo_ms: TPOT objective in milliseconds, from a header.
        matched_headers: The headers that rules look at, by lower-case name.
        model: The body's ``model``, where it was read: for rules only.
        from_body: What the body says, by ``SLO_KEYS``.
    """

    arrival_unix_s: float | None = None
    ttft_slo_ms: float | None = None
    class_name: str | None = None
    tpot_slo_ms: float | None = None
    matched_headers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    from_body: Mapping[str, Any] = field(default_factory=dict)


def read_headers(
    raw_headers: Iterable[tuple[bytes, bytes]], matched: Collection[str] = ()
) -> HeaderSlo:
    """Read an HTTP request's headers.

    Args:
        raw_headers: Names and values.
        matched: Lower-case names of further headers, which rules look at.

    Raises:
        SloError: A header of ours is malformed, out of range or sent twice, or aliases disagree.
    """
    said: dict[str, tuple[str, str]] = {}
    sent: set[str] = set()
    others: dict[str, str] = {}
    for raw_name, raw_value in raw_headers:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip()
        if name in HEADERS:
            if name in sent:
                raise SloError(name, "was sent more than once")
            sent.add(name)
            meaning = HEADERS[name]
            before = said.setdefault(meaning, (name, value))
            if before[1] != value:
                raise SloError(
                    name, f"says {quoted(value)} but {before[0]} says {quoted(before[1])}"
                )
        elif name in matched:  # what repeating a header means in HTTP
            others[name] = value if name not in others else f"{others[name]}, {value}"
    return HeaderSlo(
        None,
        _parse_header_ms(said.get(TTFT_SLO_HEADER), ttft_problem),
        said[CLASS_HEADER][1] if CLASS_HEADER in said else None,
        _parse_header_ms(said.get(TPOT_SLO_HEADER), tpot_problem),
        others,
    )


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a caller asks for, validated."""

    class_name: str | None
    ttft_slo_ms: float | None
    tpot_slo_ms: float | None

    @property
    def can_match(self) -> bool:
        """True if rules may choose the class."""
        return self.class_name is None and self.ttft_slo_ms is None


_NOTHING_STATED = _Stated(None, None, None)


@dataclass(frozen=True, slots=True)
class SloResolver:
    """Applies the rules of this module with one server's classes."""

    classes: SloClasses

    def resolve(
        self, header: HeaderSlo | None, custom_params: Any, num_prompt_tokens: int | None = None
    ) -> Slo:
        """Return the SLO of one request.

        Args:
            header: The HTTP request outside of its ``custom_params``, None outside HTTP.
            custom_params: ``sampling_params.custom_params`` as received.
            num_prompt_tokens: Length of the prompt; None if unknown, which no rule that asks for
                lengths matches.

        Raises:
            SloError: A value is malformed, out of range, unknown or contradictory.
        """
        stated = self._stated(header, custom_params)
        if not stated.can_match:
            return self._as_stated(stated)
        return self._matched(stated, self._candidates(header), num_prompt_tokens)

    def stamped_params(
        self, header: HeaderSlo | None, custom_params: Any, now_unix_s: float
    ) -> Any:
        """Return ``custom_params`` as the scheduler expects them.

        They hold the TTFT objective, the class and the arrival; the TPOT objective if the caller
        stated one; and the rules that the length of the prompt decides on, if there are any, in
        which case objective and class are what applies if none of these matches.

        Args:
            header: The HTTP request outside of its ``custom_params``, None outside HTTP.
            custom_params: As received; not changed.
            now_unix_s: Arrival where no header carries one.

        Raises:
            SloError: As ``resolve``.
        """
        stated = self._stated(header, custom_params)
        rules = self._candidates(header) if stated.can_match else []
        slo = self._matched(stated, rules, None) if stated.can_match else self._as_stated(stated)
        arrival_unix_s = None if header is None else header.arrival_unix_s
        stamp: dict[str, Any] = {
            TTFT_SLO_KEY: slo.ttft_s * 1000.0,
            CLASS_KEY: slo.class_name,
            ARRIVAL_KEY: now_unix_s if arrival_unix_s is None else arrival_unix_s,
        }
        if slo.predicted_factor:
            stamp[FACTOR_KEY] = slo.predicted_factor
        if stated.tpot_slo_ms is not None:
            stamp[TPOT_SLO_KEY] = self.classes.bounds.tpot_ms(stated.tpot_slo_ms)
        undecided = [self.classes.rules[i] for i in rules if self.classes.rules[i].asks_for_length]
        if undecided:
            stamp[RULES_KEY] = [
                [rule.class_name, rule.min_prompt_tokens, rule.max_prompt_tokens]
                for rule in undecided
            ]
        others = {
            k: v
            for k, v in (custom_params or {}).items()
            if k not in _SERVER_KEYS and k not in SLO_KEYS
        }
        return {**others, **stamp}

    def stamped_slo(self, custom_params: Mapping[str, Any] | None, num_prompt_tokens: int) -> Slo:
        """Return the SLO that a stamp means for a prompt of this length.

        Trusts the stamp: every request has got its own in the process that speaks HTTP. Without
        one (warm-up requests of the engine) the server's default applies.
        """
        params = custom_params or {}
        tpot_slo_ms = params.get(TPOT_SLO_KEY)
        for class_name, least, most in params.get(RULES_KEY, ()):
            if least <= num_prompt_tokens and (most is None or num_prompt_tokens <= most):
                return self.classes.slo(class_name, tpot_slo_ms=tpot_slo_ms)
        if TTFT_SLO_KEY not in params:
            return self.classes.default
        name = params.get(CLASS_KEY, DEFAULT_CLASS)
        if name not in self.classes.by_name:
            name = DEFAULT_CLASS  # names become labels of metrics, of which there must be few
        slo = self.classes.slo(name, params[TTFT_SLO_KEY], tpot_slo_ms)
        return replace(slo, predicted_factor=params.get(FACTOR_KEY, 0.0))

    def _stated(self, header: HeaderSlo | None, custom_params: Any) -> _Stated:
        if custom_params is None:
            custom_params = {}
        if not isinstance(custom_params, Mapping):
            raise SloError("custom_params", "must be an object of named values")
        said = HeaderSlo() if header is None else header
        custom_params = with_own_fields(custom_params, said.from_body)
        class_name = _agreed(CLASS_HEADER, said.class_name, CLASS_KEY, custom_params.get(CLASS_KEY))
        if class_name is not None and not self._is_known(class_name):
            known = ", ".join(sorted(self.classes.by_name)) or "none (see --flowprefill-slo-config)"
            raise SloError(CLASS_KEY, f"unknown SLO class {quoted(class_name)}; known: {known}")
        stated = _Stated(
            class_name,
            _agreed(
                TTFT_SLO_HEADER,
                said.ttft_slo_ms,
                TTFT_SLO_KEY,
                _parse_body_ms(TTFT_SLO_KEY, custom_params.get(TTFT_SLO_KEY), ttft_problem),
            ),
            _agreed(
                TPOT_SLO_HEADER,
                said.tpot_slo_ms,
                TPOT_SLO_KEY,
                _parse_body_ms(TPOT_SLO_KEY, custom_params.get(TPOT_SLO_KEY), tpot_problem),
            ),
        )
        self._require_authority(stated, header)
        return stated

    def _require_authority(self, stated: _Stated, header: HeaderSlo | None) -> None:
        """Refuse what this server does not let its callers choose."""
        authority = self.classes.authority
        if authority == "caller":
            return
        if authority == "rules" and stated != _NOTHING_STATED:
            raise SloError(
                CLASS_KEY if stated.class_name is not None else TTFT_SLO_KEY,
                "this server's rules choose objectives and classes: leave SLO headers and fields "
                "out",
            )
        if stated.class_name is not None and not self._is_granted(stated.class_name, header):
            raise SloError(
                CLASS_KEY,
                f"class {stated.class_name!r} is given by this server's rules, which do not give "
                "it to this request",
            )

    def _is_granted(self, class_name: str, header: HeaderSlo | None) -> bool:
        """Tell whether a class has no rules, or one that may hold for this request."""
        rules = [rule for rule in self.classes.rules if rule.class_name == class_name]
        headers, model = ({}, None) if header is None else (header.matched_headers, header.model)
        return not rules or any(rule.holds_at_the_door(headers, model) for rule in rules)

    def _is_known(self, class_name: Any) -> bool:
        return isinstance(class_name, str) and class_name in self.classes.by_name

    def _as_stated(self, stated: _Stated) -> Slo:
        """Return the SLO of a request that names milliseconds, a class or both."""
        class_name = DEFAULT_CLASS if stated.class_name is None else stated.class_name
        return self.classes.claimed_slo(class_name, stated.ttft_slo_ms, stated.tpot_slo_ms)

    def _candidates(self, header: HeaderSlo | None) -> Sequence[int]:
        """Return the rules whose headers and model hold, up to one that takes all lengths."""
        headers, model = ({}, None) if header is None else (header.matched_headers, header.model)
        found = []
        for index, rule in enumerate(self.classes.rules):
            if rule.holds_at_the_door(headers, model):
                found.append(index)
                if not rule.asks_for_length:
                    break
        return found

    def _matched(self, stated: _Stated, rules: Sequence[int], num_prompt_tokens: int | None) -> Slo:
        """Return the SLO by the first rule that holds for this length, else the default."""
        for index in rules:
            rule = self.classes.rules[index]
            if rule.holds_for_length(num_prompt_tokens):
                return self.classes.claimed_slo(rule.class_name, None, stated.tpot_slo_ms)
        default = self.classes.default
        if stated.tpot_slo_ms is None:
            return default
        return replace(default, tpot_s=self.classes.bounds.tpot_ms(stated.tpot_slo_ms) / 1000.0)


def with_own_fields(custom_params: Any, own_fields: Mapping[str, Any]) -> Any:
    """Return ``custom_params`` together with the SLO fields of the request itself.

    Args:
        custom_params: As received; not changed, and not judged here.
        own_fields: Values by their names in ``SLO_KEYS``; None for what was not sent.

    Raises:
        SloError: Both state the same thing differently.
    """
    stated = {name: value for name, value in own_fields.items() if value is not None}
    if custom_params is None:
        return stated
    if not isinstance(custom_params, Mapping):
        return custom_params
    for name, value in stated.items():
        inner = custom_params.get(name)
        if inner is not None and inner != value:
            said = f"says {quoted(value)} but custom_params.{name} says {quoted(inner)}"
            raise SloError(name, said)
    return {**custom_params, **stated}


def _agreed(header_name: str, from_header: Any, body_name: str, from_body: Any) -> Any:
    if from_header is not None and from_body is not None and from_header != from_body:
        said = f"says {quoted(from_header)} but {body_name} in the body says {quoted(from_body)}"
        raise SloError(header_name, said)
    return from_body if from_header is None else from_header


def _parse_header_ms(said: tuple[str, str] | None, problem: Problem) -> float | None:
    if said is None:
        return None
    name, text = said
    try:
        value = float(text)
    except ValueError:
        raise SloError(name, f"must be milliseconds, got {quoted(text)}") from None
    return _checked_ms(name, value, problem)


def _parse_body_ms(name: str, value: Any, problem: Problem) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SloError(name, f"must be a number of milliseconds, got {quoted(value)}")
    try:
        return _checked_ms(name, float(value), problem)
    except OverflowError:
        raise SloError(name, "is too large") from None


def _checked_ms(name: str, value: float, problem: Problem) -> float:
    if (what := problem(value)) is not None:
        raise SloError(name, f"{what}, got {value:g}")
    return value
