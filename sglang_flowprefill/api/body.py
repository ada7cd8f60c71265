"""What a request body says about its SLO, wherever in it that is said.

SGLang hands ``custom_params`` through on some routes and in one place each; people write objectives
where another engine, or another route, wants them. In the places of ``_PLACES`` they count on every
route. Anywhere else, and under a name that is nearly right, they are an error: never accepted
and ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sglang_flowprefill.errors import SloError, quoted

TTFT_SLO_KEY = "ttft_slo_ms"
TPOT_SLO_KEY = "tpot_slo_ms"
CLASS_KEY = "slo_class"

SLO_KEYS = (TTFT_SLO_KEY, TPOT_SLO_KEY, CLASS_KEY)
"""What callers write."""

_CUSTOM = "custom_params"
_PLACES: Sequence[tuple[str, ...]] = (
    (),
    (_CUSTOM,),
    ("sampling_params",),
    ("sampling_params", _CUSTOM),
    ("extra_body",),
    ("extra_body", _CUSTOM),
    ("extra_body", "sampling_params", _CUSTOM),
)
_NEARLY = {
    "ttft_slo": TTFT_SLO_KEY,
    "slo_ttft": TTFT_SLO_KEY,
    "slo_ttft_ms": TTFT_SLO_KEY,
    "tpot_slo": TPOT_SLO_KEY,
    "slo_tpot": TPOT_SLO_KEY,
    "slo_tpot_ms": TPOT_SLO_KEY,
}
_TELLING = tuple(name.encode() for name in (*SLO_KEYS, *_NEARLY, _CUSTOM))
# What users and their models write to one another is none of our business.
_CONTENT = frozenset({"messages", "prompt", "text", "input", "input_ids", "tools", "documents"})
_MAX_DEPTH = 6
_NO_MATCH: Mapping[str, Any] = {}


def may_state_slo(raw_body: bytes) -> bool:
    """Tell whether a body has to be parsed: most say nothing, and long prompts make that costly."""
    return any(name in raw_body for name in _TELLING)


def stated_in(body: Any) -> dict[str, Any]:
    """Return what a parsed body says for all of its prompts, by ``SLO_KEYS``; values unjudged.

    What it says for one prompt of several stays in that prompt's ``custom_params``.

    Raises:
        SloError: Two places say different things; it is said in a place or under a name that
            nobody reads; or ``custom_params`` is not an object.
    """
    if not isinstance(body, Mapping):
        return {}
    _require_objects(body)
    found: dict[str, Any] = {}
    for place in _PLACES:
        here = _at(body, place)
        for name in SLO_KEYS:
            value = here.get(name)
            if value is None:
                continue
            if name in found and found[name] != value:
                said = f"says {quoted(found[name])} and, elsewhere, {quoted(value)}"
                raise SloError(name, said)
            found[name] = value
    for path in _misplaced(body, ()):
        name = _NEARLY.get(path[-1], path[-1])
        raise SloError(
            ".".join(path)[:128],
            f"is not read there: write {name} at the top of the body or in {_CUSTOM}"
            + (", in milliseconds" if name != CLASS_KEY else ""),
        )
    return found


def per_prompt_params(body: Any) -> Iterator[Any]:
    """Yield the ``custom_params`` of each prompt of a batched ``/generate``."""
    several = body.get("sampling_params") if isinstance(body, Mapping) else None
    if isinstance(several, Sequence) and not isinstance(several, str):
        for params in several:
            if isinstance(params, Mapping):
                yield params.get(_CUSTOM)


def _require_objects(body: Mapping[str, Any]) -> None:
    for place in _PLACES:
        if place[-1:] == (_CUSTOM,):
            value = _at(body, place[:-1]).get(_CUSTOM)
            if value is not None and not isinstance(value, Mapping):
                raise SloError(".".join(place), "must be an object of named values")


def _at(body: Mapping[str, Any], place: Sequence[str]) -> Mapping[str, Any]:
    here: Any = body
    for name in place:
        here = here.get(name)
        if not isinstance(here, Mapping):
            return _NO_MATCH
    return here  # type: ignore[no-any-return]


def _misplaced(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield where names of ours stand that nobody reads."""
    if len(path) >= _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        is_read = path in _PLACES or path[:2] == ("sampling_params", _CUSTOM)
        for name, inner in value.items():
            if name in _NEARLY or (name in SLO_KEYS and not is_read):
                yield (*path, str(name))
            elif not (name in _CONTENT and not path):
                yield from _misplaced(inner, (*path, str(name)))
    elif isinstance(value, list) and path == ("sampling_params",):
        for params in value:  # one for each prompt
            yield from _misplaced(params, path)
