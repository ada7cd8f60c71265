"""From what a caller wrote to one validated ``Slo``.

Sources, all optional: header ``x-slo-ttft-ms``, header ``x-slo-class``, body
``custom_params.ttft_slo_ms``, body ``custom_params.slo_class``. A header and a body field that
disagree are an error, not a precedence rule. Milliseconds beat the class's own value; without
either, the class, then the server's default applies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import ConfigError, SloError

TTFT_SLO_KEY = "ttft_slo_ms"
CLASS_KEY = "slo_class"
ARRIVAL_KEY = "flowprefill_arrival_unix_s"
"""Written by the server, overwritten if a caller sends it: callers do not choose their arrival."""

TTFT_SLO_HEADER = "x-slo-ttft-ms"
CLASS_HEADER = "x-slo-class"

DEFAULT_CLASS = "default"
MIN_TTFT_SLO_MS = 1.0
MAX_TTFT_SLO_MS = 24 * 3600 * 1000.0

_FLAG = "--flowprefill-slo-config"


class _ClassEntry(msgspec.Struct, forbid_unknown_fields=True):
    ttft_slo_ms: float


class _ClassFile(msgspec.Struct, forbid_unknown_fields=True):
    classes: dict[str, _ClassEntry]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class SloClasses:
    """Named objectives of a server.

    Attributes:
        ttft_slo_ms: Milliseconds by class name.
        default: What a request without SLO and class gets.
    """

    ttft_slo_ms: Mapping[str, float]
    default: Slo


def load_slo_classes(path: str | None, default_ttft_slo_ms: float) -> SloClasses:
    """Read the class file; without one there is only the default class.

    Args:
        path: YAML file, or None.
        default_ttft_slo_ms: Objective of the default class where the file names none.

    Raises:
        ConfigError: The file is missing or malformed, or a value is out of range.
    """
    if path is None:
        return SloClasses({}, Slo(default_ttft_slo_ms / 1000.0, DEFAULT_CLASS))
    try:
        parsed = msgspec.yaml.decode(Path(path).read_bytes(), type=_ClassFile)
    except OSError as error:
        raise ConfigError(_FLAG, path, f"cannot read the file: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(_FLAG, path, f"not a valid SLO class file: {error}") from error
    table = {name: entry.ttft_slo_ms for name, entry in parsed.classes.items()}
    for name, value in table.items():
        if problem := _ttft_problem(value):
            raise ConfigError(f"{_FLAG}: classes.{name}.ttft_slo_ms", value, problem)
    if parsed.default is None:
        return SloClasses(table, Slo(default_ttft_slo_ms / 1000.0, DEFAULT_CLASS))
    if parsed.default not in table:
        raise ConfigError(f"{_FLAG}: default", parsed.default, f"choose one of {_names(table)}")
    return SloClasses(table, Slo(table[parsed.default] / 1000.0, parsed.default))


@dataclass(frozen=True, slots=True)
class HeaderSlo:
    """What the headers of one HTTP request say.

    Attributes:
        arrival_unix_s: When the server received the request head.
        ttft_slo_ms: Header ``x-slo-ttft-ms``, unparsed.
        class_name: Header ``x-slo-class``.
    """

    arrival_unix_s: float
    ttft_slo_ms: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, slots=True)
class SloResolver:
    """Applies the rules of this module with one server's classes."""

    classes: SloClasses

    def resolve(self, header: HeaderSlo | None, custom_params: Any) -> Slo:
        """Return the SLO of one request.

        Args:
            header: The HTTP request's headers, None outside HTTP.
            custom_params: ``sampling_params.custom_params`` as received.

        Raises:
            SloError: A value is malformed, out of range, unknown or contradictory.
        """
        if custom_params is None:
            custom_params = {}
        if not isinstance(custom_params, Mapping):
            raise SloError("custom_params", "must be an object of named values")
        class_name = _agreed(
            CLASS_HEADER, header and header.class_name, CLASS_KEY, custom_params.get(CLASS_KEY)
        )
        if class_name is not None and not self._is_known(class_name):
            known = _names(self.classes.ttft_slo_ms) or "none (see --flowprefill-slo-config)"
            raise SloError(CLASS_KEY, f"unknown SLO class {str(class_name)[:64]!r}; known: {known}")
        from_header = None if header is None else header.ttft_slo_ms
        ttft_slo_ms = _agreed(
            TTFT_SLO_HEADER,
            None if from_header is None else _parse_header_ms(from_header),
            TTFT_SLO_KEY,
            _parse_body_ms(custom_params.get(TTFT_SLO_KEY)),
        )
        if class_name is None:
            default = self.classes.default
            return default if ttft_slo_ms is None else Slo(ttft_slo_ms / 1000.0, DEFAULT_CLASS)
        if ttft_slo_ms is None:
            ttft_slo_ms = self.classes.ttft_slo_ms[class_name]
        return Slo(ttft_slo_ms / 1000.0, class_name)

    def _is_known(self, class_name: Any) -> bool:
        return isinstance(class_name, str) and class_name in self.classes.ttft_slo_ms

    def stamped_params(
        self, header: HeaderSlo | None, custom_params: Any, now_unix_s: float
    ) -> Any:
        """Return ``custom_params`` as the scheduler expects them, all three keys filled in.

        Args:
            header: The HTTP request's headers, None outside HTTP.
            custom_params: As received; not changed.
            now_unix_s: Arrival where no header carries one.

        Raises:
            SloError: As ``resolve``.
        """
        slo = self.resolve(header, custom_params)
        return {
            **(custom_params or {}),
            TTFT_SLO_KEY: slo.ttft_s * 1000.0,
            CLASS_KEY: slo.class_name,
            ARRIVAL_KEY: now_unix_s if header is None else header.arrival_unix_s,
        }


def _agreed(header_name: str, from_header: Any, body_name: str, from_body: Any) -> Any:
    if from_header is not None and from_body is not None and from_header != from_body:
        raise SloError(
            header_name, f"says {from_header!r} but custom_params.{body_name} says {from_body!r}"
        )
    return from_body if from_header is None else from_header


def _parse_header_ms(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise SloError(TTFT_SLO_HEADER, f"must be milliseconds, got {text[:64]!r}") from None
    return _checked_ms(TTFT_SLO_HEADER, value)


def _parse_body_ms(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SloError(TTFT_SLO_KEY, f"must be a number of milliseconds, got {str(value)[:64]!r}")
    try:
        return _checked_ms(TTFT_SLO_KEY, float(value))
    except OverflowError:
        raise SloError(TTFT_SLO_KEY, "is too large") from None


def _checked_ms(field: str, value: float) -> float:
    if problem := _ttft_problem(value):
        raise SloError(field, f"{problem}, got {value:g}")
    return value


def _ttft_problem(value_ms: float) -> str | None:
    if math.isfinite(value_ms) and MIN_TTFT_SLO_MS <= value_ms <= MAX_TTFT_SLO_MS:
        return None
    return f"must be between {MIN_TTFT_SLO_MS:g} and {MAX_TTFT_SLO_MS:g} milliseconds"


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(sorted(table))
