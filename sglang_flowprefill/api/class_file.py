"""The YAML file that a server's SLO classes come from.

Everything in it is checked when the server starts: a request can only meet a class that is
complete and in range, and a rule that can match.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import msgspec

from sglang_flowprefill.api.classes import (
    DEFAULT_CLASS,
    MAX_TTFT_SLO_MS,
    NO_BOUNDS,
    Authority,
    Bounds,
    Overload,
    SloClass,
    SloClasses,
    range_problem,
    tpot_problem,
)
from sglang_flowprefill.api.matching import MatchRule, unreachable_rules
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import ConfigError

_FLAG = "--flowprefill-slo-config"
_OVERLOADS: Sequence[Overload] = get_args(Overload)
_OWN_HEADERS = "x-slo-"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token, as RFC 9110 defines it
_ERROR_PLACE = re.compile(r" - at `(?:key` in `)?\$(?P<path>.*)`$")
MAX_WEIGHT = 1000.0
MAX_FACTOR = 1000.0


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
    if problem := range_problem(entry.ttft_slo_ms, MAX_TTFT_SLO_MS):
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
        problem = tpot_problem(value) if "tpot" in key else range_problem(value, MAX_TTFT_SLO_MS)
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
