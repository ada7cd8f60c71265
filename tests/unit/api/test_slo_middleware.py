"""The ASGI middleware, called directly: no server, no HTTP library."""

import asyncio
import gzip
import json

import pytest

from sglang_flowprefill.api import (
    HeaderSlo,
    MatchRule,
    SloClass,
    SloClasses,
    SloMiddleware,
    SloResolver,
)
from sglang_flowprefill.api.http import SCOPE_KEY, take_header
from sglang_flowprefill.core import Slo
from sglang_flowprefill.testing import ManualClock

RESOLVER = SloResolver(SloClasses({"chat": SloClass(200.0)}, Slo(1.0)))
MATCHING = SloResolver(
    SloClasses(
        {"chat": SloClass(200.0)},
        Slo(1.0),
        [MatchRule("chat", {"x-tier": "gold"}), MatchRule("chat", model="fast")],
    )
)
DISCONNECT = {"type": "http.disconnect"}


class Door:
    """The middleware in front of an application that records what reaches it."""

    def __init__(self, resolver=RESOLVER):
        self.clock = ManualClock(1000.0)
        self.scopes, self.received, self.sent = [], [], []
        self.num_read = 0
        self.seconds_per_message = 0.0
        self._middleware = SloMiddleware(self._app, resolver, self.clock)

    async def _app(self, scope, receive, send):
        self.scopes.append(scope)
        self.num_read_before = self.num_read
        self.clock.advance(5.0)
        while scope["type"] == "http":
            message = await receive()
            self.received.append(message)
            if message == DISCONNECT:
                break

    def call(
        self, *bodies, path="/generate", method="POST", headers=(), kind="http", end=DISCONNECT
    ):
        """Send one request in as many body messages as given."""
        messages = [
            {"type": "http.request", "body": body, "more_body": index + 1 < len(bodies)}
            for index, body in enumerate(bodies or [b""])
        ]
        if end is not DISCONNECT:
            messages[-1]["more_body"] = True
        pending = iter([*messages, DISCONNECT])
        scope = {
            "type": kind,
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }

        async def receive():
            self.num_read += 1
            self.clock.advance(self.seconds_per_message)
            return next(pending)

        async def send(message):
            self.sent.append(message)

        asyncio.run(self._middleware(scope, receive, send))
        return messages

    @property
    def refusal(self):
        """The error that was sent instead of reaching the application."""
        assert not self.scopes, "the application saw a request that should have been refused"
        start, body = self.sent
        assert start["status"] == 400
        headers = dict(start["headers"])
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"content-length"] == str(len(body["body"])).encode()
        return json.loads(body["body"])["error"]


@pytest.fixture
def door():
    """Return a fresh middleware and application."""
    return Door()


def body_of(custom_params, **fields):
    """Return a ``/generate`` body."""
    return json.dumps({"sampling_params": {"custom_params": custom_params}, **fields}).encode()


# ---- passing through ----


def test_arrival_is_stamped_when_the_body_is_in(door):
    """Before the application parses anything, and not while a slow caller is still sending."""
    door.seconds_per_message = 3.0
    door.call(b"{", b"", b"}", headers=[("X-SLO-TTFT-MS", " 250 "), ("x-slo-class", "chat")])
    assert door.scopes[0][SCOPE_KEY] == HeaderSlo(1009.0, 250.0, "chat")


def test_later_prefills_of_one_request_arrive_when_they_are_made(door):
    """A conversation with tools inside ``/v1/responses`` does not age with its first turn."""
    door.call(b"{}", path="/v1/responses")
    (scope,) = door.scopes
    assert take_header(scope).arrival_unix_s == 1000.0
    assert take_header(scope).arrival_unix_s is None
    assert take_header({}) is None


def test_what_rules_look_at_is_taken_along():
    """Headers and model that no rule names stay where they are."""
    door = Door(MATCHING)
    headers = [("X-Tier", " gold "), ("x-other", "1"), ("x-slo-tpot-ms", "40")]
    door.call(b'{"model": "fast", "text": "a"}', headers=headers)
    expected = HeaderSlo(1000.0, None, None, 40.0, {"x-tier": "gold"}, "fast")
    assert door.scopes[0][SCOPE_KEY] == expected


def test_matched_header_sent_twice_is_one_joined_value():
    """As HTTP defines repeated headers; such a value matches neither of the two."""
    door = Door(MATCHING)
    door.call(b"{}", headers=[("x-tier", "gold"), ("x-tier", "gold")])
    assert door.scopes[0][SCOPE_KEY].matched_headers == {"x-tier": "gold, gold"}


@pytest.mark.parametrize(
    "body", [b'{"model": 5}', b'{"model": null}', b'{"model": ["fast"]}', b'["model"]', b'"model"']
)
def test_model_that_is_no_text_is_no_model(body):
    """SGLang words that error; here it only does not match."""
    door = Door(MATCHING)
    door.call(body, path="/v1/completions")
    assert door.scopes[0][SCOPE_KEY].model is None


def test_requests_without_slo_are_stamped_too(door):
    """Queueing counts from arrival, whether or not the caller states an objective."""
    door.call(b"{}")
    assert door.scopes[0][SCOPE_KEY] == HeaderSlo(1000.0, None, None)


@pytest.mark.parametrize(
    "bodies",
    [
        [b""],
        [body_of({"ttft_slo_ms": 100})],
        [b'{"text": "\xff not utf-8', b" \x00 nor JSON, custom_params"],
        [body_of({"slo_class": "chat"})[:20], b"", body_of({"slo_class": "chat"})[20:]],
        [b'{"custom_params": ' + b"[" * 100_000],
    ],
    ids=["empty", "one message", "not JSON", "several messages", "nested too deep"],
)
def test_body_reaches_the_application_byte_for_byte(door, bodies):
    """Same messages, same borders, and then whatever the connection says next."""
    messages = door.call(*bodies)
    assert door.received == [*messages, DISCONNECT]


def test_connection_lost_inside_the_body_is_passed_on(door):
    """The application hears of the disconnect itself."""
    messages = door.call(b'{"text": "cut', end=None)
    assert door.received == [*messages, DISCONNECT]
    assert not door.sent


def test_compressed_body_passes_unread(door):
    """It is validated later, by the tokenizer hook, once somebody has decoded it."""
    body = gzip.compress(body_of({"ttft_slo_ms": -1}))
    messages = door.call(body, headers=[("Content-Encoding", "gzip")])
    assert door.num_read_before == 0
    assert door.received == [*messages, DISCONNECT]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_pass_untouched(door, kind):
    """Only HTTP requests carry an SLO."""
    door.call(kind=kind, headers=[("x-slo-ttft-ms", "nonsense")])
    assert SCOPE_KEY not in door.scopes[0]


def test_get_passes_untouched(door):
    """Health checks and model lists are none of our business."""
    door.call(method="GET", path="/health", headers=[("x-slo-ttft-ms", "nonsense")])
    assert SCOPE_KEY not in door.scopes[0]


def test_other_routes_keep_their_body_to_themselves(door):
    """``custom_params`` on a route that does not generate is not ours to judge."""
    door.call(body_of({"ttft_slo_ms": -1}), path="/flush_cache")
    assert len(door.scopes) == 1


# ---- refusing ----


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/flush_cache"])
def test_bad_header_is_refused_on_every_route(door, path):
    """400 with the field at fault, in the shape of OpenAI's errors."""
    door.call(b"{}", path=path, headers=[("x-slo-ttft-ms", "-1")])
    assert door.refusal["param"] == "x-slo-ttft-ms"
    assert (door.refusal["type"], door.refusal["code"]) == ("BadRequestError", 400)


def test_header_sent_twice_is_refused(door):
    """Whichever a proxy would keep, the caller did not mean both."""
    door.call(b"{}", headers=[("x-slo-class", "chat"), ("X-Slo-Class", "chat")])
    assert "more than once" in door.refusal["message"]


@pytest.mark.parametrize("name", ["x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms"])
def test_every_slo_header_sent_twice_is_refused(door, name):
    """Even if both say the same."""
    door.call(b"{}", headers=[(name, "100"), (name, "100")])
    assert door.refusal["param"] == name


def test_bad_tpot_is_refused_in_header_and_body(door):
    """The same rules as for TTFT."""
    door.call(b"{}", headers=[("x-slo-tpot-ms", "60001")])
    assert door.refusal["param"] == "x-slo-tpot-ms"
    other = Door()
    other.call(body_of({"tpot_slo_ms": 0}))
    assert other.refusal["param"] == "tpot_slo_ms"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_bad_body_is_refused_under_both_methods_of_generate(door, method):
    """SGLang serves ``/generate`` under POST and PUT alike."""
    door.call(body_of({"ttft_slo_ms": "soon"}), method=method)
    assert door.refusal["param"] == "ttft_slo_ms"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bad_body_is_refused_on_openai_routes(door, path):
    """There ``custom_params`` stands at the top of the body."""
    door.call(json.dumps({"custom_params": {"slo_class": "vip"}}).encode(), path=path)
    assert door.refusal["param"] == "slo_class"


def test_bad_body_is_refused_before_a_stream_begins(door):
    """A status code, not an error event inside a stream that already said 200."""
    door.call(body_of({"ttft_slo_ms": -1}, stream=True))
    assert door.refusal["code"] == 400


def test_one_bad_prompt_of_a_batched_request_refuses_it(door):
    """Each of the sampling parameters of a list is validated."""
    params = [{"custom_params": {"ttft_slo_ms": 5}}, {}, {"custom_params": {"ttft_slo_ms": -1}}]
    door.call(json.dumps({"sampling_params": params}).encode())
    assert door.refusal["param"] == "ttft_slo_ms"


def test_header_against_body_is_refused(door):
    """The contradiction is seen at the door."""
    door.call(body_of({"ttft_slo_ms": 100}), headers=[("x-slo-ttft-ms", "200")])
    assert door.refusal["param"] == "x-slo-ttft-ms"


OWN_FIELD_ROUTES = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses"]


@pytest.mark.parametrize("path", OWN_FIELD_ROUTES)
@pytest.mark.parametrize(
    ("name", "value"),
    [("ttft_slo_ms", "250"), ("ttft_slo_ms", True), ("tpot_slo_ms", 0), ("slo_class", ["chat"])],
)
def test_bad_field_of_the_request_itself_is_refused(path, name, value):
    """Where SGLang's requests have SLO fields they are judged as ``custom_params`` are."""
    door = Door()
    door.call(json.dumps({name: value, "stream": True}).encode(), path=path)
    assert door.refusal["param"] == name
    assert door.refusal["code"] == 400


def test_fields_of_the_request_itself_against_custom_params_are_refused():
    """Two places that say different things are an error, for each prompt of a batch."""
    door = Door()
    params = [{}, {"custom_params": {"ttft_slo_ms": 100}}]
    door.call(json.dumps({"sampling_params": params, "ttft_slo_ms": 200}).encode())
    assert door.refusal["param"] == "ttft_slo_ms"


def test_fields_of_the_request_itself_against_the_header_are_refused():
    """The header is compared with them too."""
    door = Door()
    door.call(b'{"ttft_slo_ms": 100}', headers=[("x-slo-ttft-ms", "200")])
    assert door.refusal["param"] == "x-slo-ttft-ms"


def test_good_fields_of_the_request_itself_pass():
    """They may say what the others say."""
    door = Door()
    body = body_of({"ttft_slo_ms": 100}, ttft_slo_ms=100, slo_class="chat", tpot_slo_ms=None)
    door.call(body, headers=[("x-slo-ttft-ms", "100")])
    assert len(door.scopes) == 1


PLACES = [
    {"ttft_slo_ms": 250},
    {"custom_params": {"ttft_slo_ms": 250}},
    {"sampling_params": {"ttft_slo_ms": 250}},
    {"sampling_params": {"custom_params": {"ttft_slo_ms": 250}}},
    {"extra_body": {"ttft_slo_ms": 250}},
    {"extra_body": {"custom_params": {"ttft_slo_ms": 250}}},
]


@pytest.mark.parametrize("path", [*OWN_FIELD_ROUTES, "/v1/embeddings", "/v1/messages"])
@pytest.mark.parametrize("body", PLACES, ids=str)
def test_an_objective_counts_wherever_people_write_it(door, path, body):
    """On every route that prefills, whether or not SGLang itself passes the place on."""
    door.call(json.dumps(body).encode(), path=path)
    header = take_header(door.scopes[0])
    assert RESOLVER.resolve(header, None) == Slo(0.25)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"vllm_xargs": {"ttft_slo": 0.5}}, "vllm_xargs.ttft_slo"),
        ({"custom_params": {"slo_ttft_ms": 250}}, "custom_params.slo_ttft_ms"),
        ({"metadata": {"slo_class": "chat"}}, "metadata.slo_class"),
        ({"nvext": {"agent": {"ttft_slo_ms": 5}}}, "nvext.agent.ttft_slo_ms"),
        ({"sampling_params": [{"ttft_slo_ms": 5}, {}]}, None),
    ],
)
def test_an_objective_in_a_place_that_nobody_reads_is_refused(body, path):
    """With the place, and where it belongs: never accepted and ignored."""
    door = Door()
    door.call(json.dumps(body).encode(), path="/v1/chat/completions")
    if path is None:  # one prompt of several, where its own place is
        assert len(door.scopes) == 1
        return
    assert door.refusal["param"] == path
    assert "custom_params" in door.refusal["message"]


def test_what_users_say_to_the_model_is_not_judged(door):
    """A prompt may speak of anything."""
    said = [{"role": "user", "content": "x", "ttft_slo": 1, "slo_class": "gold"}]
    door.call(json.dumps({"messages": said}).encode(), path="/v1/chat/completions")
    assert len(door.scopes) == 1


def test_two_places_that_disagree_are_refused(door):
    """Neither silently wins."""
    door.call(b'{"ttft_slo_ms": 100, "extra_body": {"ttft_slo_ms": 200}}')
    assert door.refusal["param"] == "ttft_slo_ms"


def test_bad_body_in_several_messages_is_refused(door):
    """However the body is cut."""
    body = body_of({"ttft_slo_ms": -1})
    door.call(*(body[i : i + 7] for i in range(0, len(body), 7)))
    assert door.refusal["param"] == "ttft_slo_ms"
