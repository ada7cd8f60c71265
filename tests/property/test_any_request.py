"""Whatever a caller or an operator writes: it counts, or a clear error names what was wrong."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_flowprefill.api import MatchRule, SloClass, SloClasses, SloMiddleware, SloResolver
from sglang_flowprefill.api.body import CLASS_KEY, SLO_KEYS, TPOT_SLO_KEY, TTFT_SLO_KEY
from sglang_flowprefill.api.class_file import ServerSlo, load_slo_classes
from sglang_flowprefill.api.classes import AUTHORITIES, Bounds
from sglang_flowprefill.api.http import take_header
from sglang_flowprefill.api.request_features import require_servable
from sglang_flowprefill.api.slo import HEADERS, with_own_fields
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import ConfigError, RequestError, SloError

CLASSES = {
    "chat": SloClass(200.0, 50.0, bounds=Bounds(min_ttft_slo_ms=100.0)),
    "batch": SloClass(60000.0, predicted_factor=5.0),
}
RULES = [MatchRule("chat", {"x-tier": "gold"}), MatchRule("batch", model="m", min_prompt_tokens=9)]
RESOLVERS = [
    SloResolver(SloClasses(CLASSES, Slo(1.0), RULES, Bounds(), authority))
    for authority in AUTHORITIES
]
LONG = b"x" * 9999
LONGEST_ERROR = 600  # with the longest list of classes here; inputs are drawn far longer
VOCABULARY_SIZE = 1000

long_text = st.sampled_from(["x" * 5000, "\x1b[31m" * 900, "9" * 4000])
numbers = st.one_of(
    st.integers(-10, 10**6),
    st.sampled_from([0, 0.5, -1, 1e300, 2**63, 10**30, 7 * 24 * 3600 * 1000]),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), long_text)
OTHER_NAMES = """
ttft_slo slo_tpot_ms custom_params sampling_params extra_body model messages n
flowprefill_arrival_unix_s flowprefill_slo_rules flowprefill_slo_factor
"""
names = st.one_of(st.sampled_from([*SLO_KEYS, *OTHER_NAMES.split()]), st.text(max_size=6))
ours = st.one_of(scalars, st.sampled_from(["chat", "batch", "default", "200", 200, 50.5, "m"]))
objects = st.recursive(
    st.dictionaries(names, ours, max_size=5),
    lambda inner: st.dictionaries(names, st.one_of(ours, inner, st.lists(inner, max_size=3))),
    max_leaves=12,
)
json_bodies = objects.map(lambda body: json.dumps(body).encode())
bodies = st.one_of(
    json_bodies,
    st.binary(max_size=64),
    st.builds(lambda body, cut: body[:cut], json_bodies, st.integers(0, 60)),
    st.sampled_from([b"[" * 99999 + b'"slo_class"', b'{"slo_class": ' * 9999, b'{"n":NaN}']),
)
headers = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([*HEADERS, "x-tier", "X-SLO-TTFT-MS"]), st.text(max_size=5)),
        st.one_of(
            st.sampled_from(["chat", "batch", "200", "0", "nan", "inf", "-1", "1e3", "gold", ""]),
            st.text(max_size=9),
            long_text,
        ),
    ).map(lambda pair: tuple(text.encode("latin-1", "replace") for text in pair)),
    max_size=4,
)
paths = st.sampled_from(["/generate", "/v1/chat/completions", "/v1/responses", "/flush_cache"])


class Door:
    """The middleware in front of an application that keeps what reaches it."""

    def __init__(self, resolver):
        self.scope, self.body, self.sent = None, None, []
        self._middleware = SloMiddleware(self._app, resolver, lambda: 1000.0)

    async def _app(self, scope, receive, _send):
        self.scope, self.body = scope, (await receive())["body"]

    def call(self, path, headers, body):
        """Serve one POST."""

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        asyncio.run(self._middleware(scope, receive, send))


def require_names_the_flag(error):
    """Assert that an operator is told which file is wrong."""
    assert "--flowprefill-slo-config" in str(error)


def require_clear(message):
    """Assert that an error says something and is no echo of what was sent."""
    assert message
    assert len(message) <= LONGEST_ERROR, message[:200]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(RESOLVERS), paths, headers, bodies)
@example(RESOLVERS[0], "/generate", [(b"x-slo-class", b"chat")], b'{"slo_class": "%b"}' % LONG)
def test_any_bytes_pass_the_door_whole_or_get_a_clear_400(resolver, path, sent_headers, body):
    """No headers and no body raise; what is refused is told why, shortly, as JSON."""
    door = Door(resolver)
    door.call(path, sent_headers, body)
    if door.scope is not None:
        assert door.body == body
        assert door.sent == []
        return
    start, end = door.sent
    assert start["status"] == 400
    error = json.loads(end["body"])["error"]
    require_clear(error["message"])
    assert error["message"].startswith(error["param"])
    assert len(error["param"]) <= 128


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(RESOLVERS), headers, objects, ours, st.integers(1, 20))
def test_any_claim_is_stamped_within_bounds_or_refused(resolver, sent_headers, body, own, length):
    """What reaches the scheduler is an objective in range, a known class and our own arrival."""
    door = Door(resolver)
    door.call("/generate", sent_headers, json.dumps(body).encode())
    if door.scope is None:
        return
    header = take_header(door.scope)
    params = body.get("sampling_params")
    params = params if isinstance(params, dict) else {}
    try:
        custom = with_own_fields(params.get("custom_params"), {CLASS_KEY: own})
        stamped = resolver.stamped_params(header, custom, 2000.0)
    except SloError as error:
        require_clear(str(error))
        return
    slo = resolver.stamped_slo(stamped, length)
    assert stamped["flowprefill_arrival_unix_s"] == 1000.0
    assert 0.0 <= slo.ttft_s <= 7 * 24 * 3600
    assert slo.tpot_s is None or 0.001 <= slo.tpot_s <= 60.0
    assert slo.class_name in {*CLASSES, "default"}
    assert slo.predicted_factor in {0.0, 5.0}
    if resolver.classes.authority == "rules":
        assert own is None
        assert TPOT_SLO_KEY not in stamped


@dataclass
class AnyRequest:
    """As much of SGLang's request as is looked at."""

    input_ids: Any = None
    token_ids_logprob: Any = None
    sampling_params: Any = None
    extra: Any = field(default=None)


token_ids = st.recursive(
    st.one_of(
        st.integers(-2, VOCABULARY_SIZE + 1),
        st.sampled_from([True, None, 2**70, -(10**4000), 1.0, "x" * 5000, {}]),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["input_ids", "token_ids_logprob"]), token_ids)
@example("input_ids", 5)
def test_no_token_id_reaches_the_scheduler_that_the_model_lacks(name, ids):
    """Whatever is written for token ids, alone or for several prompts."""
    try:
        require_servable(AnyRequest(**{name: ids}), VOCABULARY_SIZE)
    except RequestError as error:
        require_clear(str(error))
        return
    rows = ids or []
    if any(isinstance(row, list) for row in rows):
        rows = [token for row in rows for token in row or []]
    assert all(type(token) is int and 0 <= token < VOCABULARY_SIZE for token in rows)


@pytest.mark.parametrize("ids", [[10**5000], [["x", 10**5000]], [10**4000, -(10**4000)]])
def test_token_ids_too_long_to_be_written_are_refused(ids):
    """Python raises when it is to write an integer of more than 4300 digits."""
    with pytest.raises(RequestError) as caught:
        require_servable(AnyRequest(input_ids=ids), VOCABULARY_SIZE)
    require_clear(str(caught.value))


class_values = st.one_of(
    scalars, st.sampled_from(["predicted x 5", "reject", float("nan"), float("inf"), 200, 0.1])
)
CLASS_KEYS = """
ttft_slo_ms ttft_slo tpot_slo_ms weight overload decode_first match
min_ttft_slo_ms max_ttft_slo_ms min_tpot_slo_ms typo
"""
class_keys = st.sampled_from(CLASS_KEYS.split())
rules = st.dictionaries(
    st.sampled_from(["header", "model", "min_prompt_tokens", "max_prompt_tokens"]),
    st.one_of(class_values, st.dictionaries(st.text(max_size=4), class_values, max_size=2)),
)
class_entries = st.one_of(
    st.dictionaries(class_keys, st.one_of(class_values, st.lists(rules, max_size=3))),
    st.builds(lambda rest: {"ttft_slo_ms": 200, **rest}, st.dictionaries(class_keys, class_values)),
    st.builds(lambda match: {"ttft_slo_ms": 200, "match": match}, st.lists(rules, max_size=3)),
    class_values,
)
class_files = st.one_of(
    st.fixed_dictionaries(
        {"classes": st.dictionaries(st.one_of(st.text(max_size=5), long_text), class_entries)},
        optional={"default": class_values},
    ).map(msgspec.yaml.encode),
    st.binary(max_size=40),
    st.text(alphabet="classes:{}[]&*!-> \n\t'\"%@", max_size=60).map(str.encode),
)


@pytest.fixture(scope="module")
def class_file(tmp_path_factory):
    """Return where class files are written."""
    return tmp_path_factory.mktemp("classes") / "classes.yaml"


@settings(max_examples=400, deadline=None)
@given(class_files)
@example(b"classes: {a: &x {ttft_slo_ms: 200, match: [*x]}}")
@example(b"classes: {? [1] : {}}")
@example(b"\xff\xfe")
def test_any_class_file_is_read_or_stops_the_start_with_a_clear_error(class_file, content):
    """An operator's slip never shows up as a traceback, nor as a class out of range."""
    class_file.write_bytes(content)
    try:
        classes = load_slo_classes(str(class_file), ServerSlo(1000.0))
    except ConfigError as error:
        require_names_the_flag(error)
        return
    for name in classes.by_name:
        assert 0.001 <= classes.slo(name).ttft_s <= 7 * 24 * 3600
        assert TTFT_SLO_KEY in SloResolver(classes).stamped_params(None, {CLASS_KEY: name}, 0.0)
