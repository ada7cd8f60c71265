"""The SLO classes of a server, and the YAML file that they come from.

Everything in the file is checked when the server starts: a request can only meet a class that is
complete and in range, and a rule that can match.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from sglang_flowprefill.api.matching import MatchRule, unreachable_rules
from sglang_flowprefill.core import ClassAttainment, Slo
from sglang_flowprefill.core.admission import AdmissionMode
from sglang_flowprefill.errors import ConfigError

DEFAULT_CLASS = "default"
"""Class of requests that name milliseconds and no class, and of all others on a server without."""

MIN_SLO_MS = 1.0
MAX_TTFT_SLO_MS = 7 * 24 * 3600 * 1000.0  # batch gateways send what is left of a job's days
MAX_TPOT_SLO_MS = 60 * 1000.0
MAX_WEIGHT = 1000.0
MAX_FACTOR = 1000.0

# "none" and not "off": YAML reads an unquoted off as false.
Overload = Literal["reject", "degrade", "none"]
Authority = Literal["caller", "clamped", "rules"]

_FLAG = "--flowprefill-slo-config"
AUTHORITIES: Sequence[Authority] = get_args(Authority)
_OVERLOADS: Sequence[Overload] = get_args(Overload)
_OWN_HEADERS = "x-slo-"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token, as RFC 9110 defines it
_ERROR_PLACE = re.compile(r" - at `(?:key` in `)?\$(?P<path>.*)`$")


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
    return _range_problem(value_ms, MAX_TTFT_SLO_MS)


def tpot_problem(value_ms: float) -> str | None:
    """Return what is wrong with a TPOT objective, None if nothing is."""
    return _range_problem(value_ms, MAX_TPOT_SLO_MS)


def _range_problem(value_ms: float, max_ms: float) -> str | None:
    if math.isfinite(value_ms) and MIN_SLO_MS <= value_ms <= max_ms:
        return None
    return f"must be between {MIN_SLO_MS:.0f} and {max_ms:.0f} milliseconds"


# ---- the file ----


class _RuleEntry(msgspec.Struct, forbid_unknown_fields=True):
    header: dict[str, str] | None = None
    model: str | None = None
    min_prompt_tokens: int | None = None
    max_prompt_tokens: int | None = None


class _ClassEntry(msgspec.Struct, forbid_unknown_fields=True):
    ttft_slo_ms: float
    ttft_slo: str | None = None
    tpot_slo_ms: float | None = None
    weight: float = 1.0
    overload: str | None = None
    decode_first: bool = False
    min_ttft_slo_ms: float | None = None
    max_ttft_slo_ms: float | None = None
    min_tpot_slo_ms: float | None = None
    max_tpot_slo_ms: float | None = None
    match: list[_RuleEntry] | None = None


class _ClassFile(msgspec.Struct, forbid_unknown_fields=True):
    classes: dict[str, Any]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class ServerSlo:
    """What a server's flags say about objectives.

    Attributes:
        default_ttft_slo_ms: Objective of a request that names none, for its shortest prompt.
        default_factor: It grows by this many times the predicted prefill time.
        bounds: What callers may claim.
        authority: Who chooses; see ``SloClasses``.
    """

    default_ttft_slo_ms: float
    default_factor: float = 0.0
    bounds: Bounds = NO_BOUNDS
    authority: Authority = "caller"


def load_slo_classes(path: str | None, server: ServerSlo) -> SloClasses:
    """Read the class file; without one there is only the default class.

    Args:
        path: YAML file, or None.
        server: What applies where the file says nothing.

    Raises:
        ConfigError: The file is missing or malformed, a value is out of range, or a rule can
            never match.
    """
    flag_default = Slo(
        server.default_ttft_slo_ms / 1000.0, DEFAULT_CLASS, predicted_factor=server.default_factor
    )
    rest = (server.bounds, server.authority)
    if path is None:
        return SloClasses({}, flag_default, (), *rest)
    try:
        parsed = msgspec.yaml.decode(Path(path).read_bytes(), type=_ClassFile)
    except OSError as error:
        raise ConfigError(_FLAG, path, f"cannot read the file: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(_FLAG, path, f"not a valid SLO class file: {error}") from error
    entries = {name: _class_entry(name, value) for name, value in parsed.classes.items()}
    by_name = {name: _slo_class(name, entry) for name, entry in entries.items()}
    classes = SloClasses(by_name, flag_default, _rules(entries), *rest)
    if parsed.default is None:
        return classes
    if parsed.default not in by_name:
        known = ", ".join(sorted(by_name)) or "none: the file has no classes"
        raise ConfigError(f"{_FLAG}: default", parsed.default, f"choose one of {known}")
    return SloClasses(by_name, classes.slo(parsed.default), classes.rules, *rest)


def _class_entry(name: str, value: Any) -> _ClassEntry:
    """Convert one class. One by one, since msgspec's messages leave out keys of mappings."""
    try:
        return msgspec.convert(value, _ClassEntry)
    except msgspec.ValidationError as error:
        problem = str(error)
        place = _ERROR_PLACE.search(problem)
        path = "" if place is None else place["path"]
        if place is not None:
            problem = problem[: place.start()]
        if "unknown field" in problem:
            kind = _RuleEntry if path.startswith(".match[") else _ClassEntry
            problem += f"; allowed: {', '.join(kind.__struct_fields__)}"
        raise _class_error(name + path, _value_at(path, value), problem) from error


def _value_at(path: str, value: Any) -> Any:
    """Follow msgspec's path as far as it tells: keys of mappings are not in it."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


def _slo_class(name: str, entry: _ClassEntry) -> SloClass:
    if problem := _range_problem(entry.ttft_slo_ms, MAX_TTFT_SLO_MS):
        raise _class_error(f"{name}.ttft_slo_ms", entry.ttft_slo_ms, problem)
    if entry.tpot_slo_ms is not None and (problem := tpot_problem(entry.tpot_slo_ms)):
        raise _class_error(f"{name}.tpot_slo_ms", entry.tpot_slo_ms, problem)
    if not 0.0 < entry.weight <= MAX_WEIGHT:
        problem = f"must be above 0 and at most {MAX_WEIGHT:g}"
        raise _class_error(f"{name}.weight", entry.weight, problem)
    return SloClass(
        entry.ttft_slo_ms,
        entry.tpot_slo_ms,
        entry.weight,
        _overload(name, entry.overload),
        entry.decode_first,
        _predicted_factor(name, entry.ttft_slo),
        _bounds(name, entry),
    )


def _predicted_factor(name: str, given: str | None) -> float:
    """Read ``predicted x 5``."""
    if given is None:
        return 0.0
    match = re.fullmatch(r"\s*predicted\s*[x*]\s*(\d+(\.\d+)?)\s*", given)
    factor = float(match[1]) if match else 0.0
    if not 1.0 <= factor <= MAX_FACTOR:
        problem = f"must read 'predicted x N' with N from 1 to {MAX_FACTOR:g}"
        raise _class_error(f"{name}.ttft_slo", given, problem)
    return factor


def _bounds(name: str, entry: _ClassEntry) -> Bounds:
    """Read what callers of a class may claim."""
    given = {
        spec.name: value
        for spec in fields(Bounds)
        if (value := getattr(entry, spec.name)) is not None
    }
    for key, value in given.items():
        problem = tpot_problem(value) if "tpot" in key else _range_problem(value, MAX_TTFT_SLO_MS)
        if problem:
            raise _class_error(f"{name}.{key}", value, problem)
    bounds = Bounds(**given)
    for kind in ("ttft", "tpot"):
        least = getattr(bounds, f"min_{kind}_slo_ms")
        most = getattr(bounds, f"max_{kind}_slo_ms")
        if least > most:
            problem = f"must not exceed max_{kind}_slo_ms ({most:g})"
            raise _class_error(f"{name}.min_{kind}_slo_ms", least, problem)
    return bounds


def _overload(name: str, given: str | None) -> Overload | None:
    for overload in _OVERLOADS:
        if given == overload:
            return overload
    if given is None:
        return None
    raise _class_error(f"{name}.overload", given, f"choose one of {', '.join(_OVERLOADS)}")


def _rules(entries: Mapping[str, _ClassEntry]) -> Sequence[MatchRule]:
    """Return the rules of all classes, in file order."""
    rules, paths, originals = [], [], []
    for name, entry in entries.items():
        if entry.match is not None and not entry.match:
            raise _class_error(f"{name}.match", [], "must not be empty; leave it out")
        for index, rule in enumerate(entry.match or ()):
            path = f"{name}.match[{index}]"
            rules.append(_rule(name, path, rule))
            paths.append(path)
            originals.append(rule)
    for index, covering in unreachable_rules(rules):
        takers = " and ".join(f"classes.{paths[i]}" for i in covering)
        raise _class_error(
            paths[index],
            _written(originals[index]),
            f"can never match: {takers}, earlier in the file, takes all of its requests",
        )
    return tuple(rules)


def _rule(class_name: str, path: str, entry: _RuleEntry) -> MatchRule:
    written = _written(entry)
    if all(value == {} for value in written.values()):
        names = ", ".join(_RuleEntry.__struct_fields__)
        raise _class_error(path, written, f"asks for nothing; name at least one of {names}")
    if entry.model is not None and not entry.model:
        raise _class_error(f"{path}.model", entry.model, "must not be empty")
    for name in ("min_prompt_tokens", "max_prompt_tokens"):
        if (number := getattr(entry, name)) is not None and number < 1:
            raise _class_error(f"{path}.{name}", number, "must be at least 1")
    least, most = entry.min_prompt_tokens or 1, entry.max_prompt_tokens
    if most is not None and least > most:
        raise _class_error(path, written, "min_prompt_tokens must not exceed max_prompt_tokens")
    headers = dict(_header_conditions(path, entry.header or {}))
    return MatchRule(class_name, headers, entry.model, least, most)


def _header_conditions(path: str, header: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    seen = set()
    for given, value in header.items():
        name = given.lower()
        place = f"{path}.header.{given}"
        if not _HEADER_NAME.fullmatch(given):
            raise _class_error(place, value, "is not the name of a header")
        if name.startswith(_OWN_HEADERS):
            raise _class_error(place, value, "states an SLO itself and cannot be matched")
        if name in seen:
            raise _class_error(place, value, "is named twice; headers ignore upper and lower case")
        if value != value.strip() or not (value.isascii() and value.isprintable()):
            problem = "must be printable ASCII without white space at its ends"
            raise _class_error(place, value, problem)
        seen.add(name)
        yield name, value


def _written(entry: _RuleEntry) -> dict[str, Any]:
    """Return the conditions that the file states."""
    return {name: v for name, v in msgspec.structs.asdict(entry).items() if v is not None}


def _class_error(path: str, value: object, problem: str) -> ConfigError:
    return ConfigError(f"{_FLAG}: classes.{path}", value, problem)
