"""Refusals on their way from the scheduler to an HTTP answer, without a server."""

import asyncio
import json
import math
import pickle

import msgspec
import pytest

from sglang_flowprefill.api import (
    SloClass,
    SloClasses,
    SloMiddleware,
    SloResolver,
    reject,
    rejection_in,
)
from sglang_flowprefill.api.answer import report_abort
from sglang_flowprefill.core import Slo

SLO = Slo(0.5, "chat")
RESOLVER = SloResolver(SloClasses({"chat": SloClass(500.0)}, SLO))
REFUSED = reject("predicted to miss its deadline", SLO, 2.2)
HOPELESS = reject("too long for its deadline on an idle server", SLO, math.inf)
EVENT_STREAM = [(b"content-type", b"text/event-stream"), (b"access-control-allow-origin", b"*")]


@pytest.mark.parametrize(
    ("late_s", "expected"),
    [(0.0, 1), (-5.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (1e9, 3600)],
)
def test_retry_after_is_whole_seconds_at_least_one(late_s, expected):
    """Rounded up, and bounded: nobody can tell the load of next week."""
    rejection = reject("late", SLO, late_s)
    assert (rejection.retry_after_s, rejection.status) == (expected, 429)
    assert f"try again in {expected} s" in rejection.message


def test_what_no_waiting_helps_is_the_callers_to_change():
    """Status 400 without a time: clients would send a 429 again by themselves."""
    assert (HOPELESS.retry_after_s, HOPELESS.status) == (None, 400)
    assert "try again" not in HOPELESS.message


def test_message_names_reason_objective_and_class():
    """Enough to act on without the server's logs."""
    assert REFUSED.message == (
        "refused: predicted to miss its deadline; its TTFT objective is 500 ms (class 'chat'); "
        "try again in 3 s"
    )


@pytest.mark.parametrize("rejection", [REFUSED, HOPELESS])
@pytest.mark.parametrize(
    "carry",
    [
        lambda reason: pickle.loads(pickle.dumps(reason)),
        lambda reason: msgspec.msgpack.decode(msgspec.msgpack.encode(reason)),
    ],
    ids=["pickle", "msgpack"],
)
def test_finish_reason_survives_both_ways_between_processes(rejection, carry):
    """SGLang uses one or the other; both give the rejection back."""
    reason = carry(rejection.finish_reason)
    assert (reason["type"], reason["status_code"]) == ("abort", rejection.status)
    assert rejection_in(reason) == rejection


@pytest.mark.parametrize(
    "reason",
    [
        None,
        "abort",
        {},
        {"type": "stop", "matched": 2},
        {"type": "abort", "message": "The request queue is full.", "status_code": 503},
        {"type": "abort", "message": "m", "status_code": 429, "err_type": None},
    ],
)
def test_other_finish_reasons_are_no_rejections(reason):
    """SGLang's own aborts, also with our status, keep SGLang's own answers."""
    assert rejection_in(reason) is None


# ---- answers ----


def start(status=200, headers=EVENT_STREAM):
    """Return the head of an answer."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content, more_body=True):
    """Return a part of the body of an answer."""
    return {"type": "http.response.body", "body": content, "more_body": more_body}


def abort(reason):
    """Return a step at which the application learns of an abort, in a task of its own."""
    return lambda: report_abort(reason)


def serve(*steps, can_reject=True, method="POST"):
    """Return what reaches the client of an application that takes these steps.

    A step is a message to send, a function to call or an exception to raise. The list grows while
    the application runs: a function may look at what has been sent so far.
    """
    sent = []

    async def app(scope, receive, send):
        async def call(step):
            step()

        for step in steps:
            if isinstance(step, Exception):
                raise step
            if callable(step):
                await asyncio.create_task(call(step))  # as SGLang waits for prompts of a batch
            else:
                await send(step)

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/generate", "headers": []}
    middleware = SloMiddleware(app, RESOLVER, lambda: 0.0, can_reject=can_reject)
    try:
        asyncio.run(middleware(scope, receive, send))
    except ConnectionError as error:
        sent.append(error)
    return sent


ROUTES = {
    # Starlette's head of a stream comes first, the abort with the first output.
    "streaming generate": [
        start(),
        abort(REFUSED.finish_reason),
        body(b'data: {"text": ""}\n\n'),
        body(b"data: [DONE]\n\n"),
        body(b"", more_body=False),
    ],
    # OpenAI's routes wait for the first output before the head.
    "streaming chat": [
        abort(REFUSED.finish_reason),
        start(),
        body(b'data: {"error": {}}\n\n'),
        body(b"data: [DONE]\n\n"),
        body(b"", more_body=False),
    ],
    # An HTTPException of SGLang's, in SGLang's shape.
    "not streaming": [
        abort(REFUSED.finish_reason),
        start(429, [(b"content-length", b"15"), (b"access-control-allow-origin", b"*")]),
        body(b'{"message": ""}', more_body=False),
    ],
    # A part of a batch is refused, another has failed before: the first refusal decides.
    "error of SGLang": [start(500), abort(REFUSED.finish_reason), body(b"", more_body=False)],
}


@pytest.mark.parametrize("route", ROUTES)
def test_refusal_is_429_with_retry_after_on_every_route(route):
    """One answer, complete, in the shape of OpenAI's errors; headers of others are kept."""
    head, content = serve(*ROUTES[route])
    headers = dict(head["headers"])
    assert head["status"] == 429
    assert headers[b"retry-after"] == b"3"
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == str(len(content["body"])).encode()
    assert headers[b"access-control-allow-origin"] == b"*"
    assert not content.get("more_body", False)
    assert json.loads(content["body"]) == {
        "error": {
            "message": REFUSED.message,
            "type": "OverloadedError",
            "param": None,
            "code": 429,
        }
    }


def test_no_header_is_sent_twice():
    """Length and type of the replaced body do not stay."""
    head, _ = serve(*ROUTES["not streaming"])
    names = [name for name, _ in head["headers"]]
    assert len(set(names)) == len(names)


def test_what_no_waiting_helps_is_answered_400():
    """Without Retry-After, as every other fault of a caller."""
    head, content = serve(abort(HOPELESS.finish_reason), start(400), body(b"", more_body=False))
    assert head["status"] == 400
    assert b"retry-after" not in dict(head["headers"])
    assert json.loads(content["body"])["error"]["type"] == "BadRequestError"


def test_other_answers_pass_unchanged():
    """Message by message, those of SGLang's own aborts too."""
    steps = [start(), abort({"type": "abort", "status_code": 503}), body(b"a"), body(b"b")]
    steps.append(body(b"", more_body=False))
    assert serve(*steps) == [step for step in steps if not callable(step)]


def test_head_waits_for_the_first_part_of_the_body():
    """Then both are sent at once, and later parts without delay."""
    seen = []
    sent = []

    def look():
        seen.append(len(sent))

    messages = [start(), body(b"a"), body(b"", more_body=False)]

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
            look()

    middleware = SloMiddleware(app, RESOLVER, lambda: 0.0, can_reject=True)
    scope = {"type": "http", "method": "POST", "path": "/flush_cache", "headers": []}
    asyncio.run(middleware(scope, None, send))
    assert (seen, sent) == ([0, 2, 3], messages)


def test_refusal_after_the_body_began_leaves_the_answer_alone():
    """A prompt of a streamed batch that is refused late is an event of the stream."""
    steps = [start(), body(b"a"), abort(REFUSED.finish_reason), body(b"b", more_body=False)]
    assert serve(*steps) == [steps[0], steps[1], steps[3]]


def test_head_without_a_body_is_sent_in_the_end():
    """An application that sends no body is not silenced."""
    assert serve(start(204, [])) == [start(204, [])]


def test_failure_before_the_body_leaves_the_head_unsent():
    """So that the server can still answer with status 500."""
    (error,) = serve(start(), ConnectionError("lost"))
    assert isinstance(error, ConnectionError)


@pytest.mark.parametrize(("can_reject", "method"), [(False, "POST"), (True, "GET")])
def test_where_nothing_can_be_refused_nothing_is_held_back(can_reject, method):
    """Servers without admission, and requests that generate nothing, pay nothing."""
    steps = [start(), abort(REFUSED.finish_reason), body(b"a", more_body=False)]
    answer = serve(*steps, can_reject=can_reject, method=method)
    assert answer == [steps[0], steps[2]]


def test_report_outside_a_request_is_ignored():
    """``sglang.Engine`` has no HTTP answer; its caller gets SGLang's exception."""
    report_abort(REFUSED.finish_reason)
    assert serve(start(), body(b"a", more_body=False)) == [start(), body(b"a", more_body=False)]


def test_requests_do_not_see_each_others_refusals():
    """Two that are served at the same time, of which one is refused."""
    both = asyncio.Barrier(2)
    statuses = {}

    async def app(scope, receive, send):
        await both.wait()
        if scope["path"] == "/refused":
            report_abort(REFUSED.finish_reason)
        await both.wait()
        await send(start())
        await send(body(b"a", more_body=False))

    middleware = SloMiddleware(app, RESOLVER, lambda: 0.0, can_reject=True)

    async def call(path):
        async def send(message):
            statuses.setdefault(path, message.get("status"))

        await middleware(
            {"type": "http", "method": "POST", "path": path, "headers": []}, None, send
        )

    async def call_both():
        await asyncio.gather(call("/refused"), call("/served"))

    asyncio.run(call_both())
    assert statuses == {"/refused": 429, "/served": 200}
