"""From headers and body to one SLO, or to an error that names the field."""

import math
from dataclasses import replace

import pytest

from sglang_flowprefill.api import SloClass, SloClasses, SloResolver
from sglang_flowprefill.api.classes import NO_BOUNDS, Bounds, MatchRule
from sglang_flowprefill.api.slo import read_headers
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import FlowPrefillError, SloError

RESOLVER = SloResolver(
    SloClasses(
        {"chat": SloClass(200.0), "batch": SloClass(60_000.0), "voice": SloClass(100.0, 40.0)},
        default=Slo(1.0, "default"),
    ),
)


def header(ttft_slo_ms=None, class_name=None, tpot_slo_ms=None, arrival_unix_s=1000.0):
    """Return what a request's headers say."""
    sent = {"x-slo-ttft-ms": ttft_slo_ms, "x-slo-class": class_name, "x-slo-tpot-ms": tpot_slo_ms}
    return said(
        *((name, text) for name, text in sent.items() if text is not None),
        arrival_unix_s=arrival_unix_s,
    )


def said(*headers, arrival_unix_s=1000.0):
    """Return what these headers say."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return replace(read_headers(raw), arrival_unix_s=arrival_unix_s)


@pytest.mark.parametrize(
    ("headers", "custom_params", "expected"),
    [
        pytest.param(None, None, Slo(1.0), id="nothing: the server's default"),
        pytest.param(header(), {}, Slo(1.0), id="empty headers and body: the default"),
        pytest.param(None, {"other": [1]}, Slo(1.0), id="foreign parameters are left alone"),
        pytest.param(header("250"), None, Slo(0.25), id="header milliseconds"),
        pytest.param(header("2.5e2"), None, Slo(0.25), id="header in scientific notation"),
        pytest.param(None, {"ttft_slo_ms": 250}, Slo(0.25), id="body milliseconds"),
        pytest.param(None, {"ttft_slo_ms": 1.0}, Slo(0.001), id="the least objective"),
        pytest.param(None, {"ttft_slo_ms": 604_800_000}, Slo(604_800.0), id="the greatest"),
        pytest.param(header("0"), None, Slo(0.001), id="an objective that has expired"),
        pytest.param(header("172800000"), None, Slo(172_800.0), id="a batch job of two days"),
        pytest.param(None, {"ttft_slo_ms": None, "slo_class": None}, Slo(1.0), id="nulls: unset"),
        pytest.param(header(None, "chat"), None, Slo(0.2, "chat"), id="header class"),
        pytest.param(None, {"slo_class": "batch"}, Slo(60.0, "batch"), id="body class"),
        pytest.param(header("50", "chat"), None, Slo(0.05, "chat"), id="milliseconds beat class"),
        pytest.param(
            header(None, "chat"), {"ttft_slo_ms": 50}, Slo(0.05, "chat"), id="one from each"
        ),
        pytest.param(
            header("50", "chat"),
            {"ttft_slo_ms": 50.0, "slo_class": "chat"},
            Slo(0.05, "chat"),
            id="header and body agree",
        ),
        pytest.param(None, {"slo_class": "voice"}, Slo(0.1, "voice", 0.04), id="class with TPOT"),
        pytest.param(header(None, "voice", "8"), None, Slo(0.1, "voice", 0.008), id="TPOT header"),
        pytest.param(
            None,
            {"slo_class": "voice", "tpot_slo_ms": 60_000},
            Slo(0.1, "voice", 60.0),
            id="TPOT in the body, the greatest",
        ),
        pytest.param(
            header(None, None, "1"),
            {"tpot_slo_ms": 1.0},
            Slo(1.0, "default", 0.001),
            id="TPOT only",
        ),
        pytest.param(header("50", None, "20"), None, Slo(0.05, "default", 0.02), id="both headers"),
        pytest.param(
            header("50"), {"tpot_slo_ms": 20}, Slo(0.05, "default", 0.02), id="one objective each"
        ),
    ],
)
def test_accepted(headers, custom_params, expected):
    """Every documented way to state an objective gives that objective."""
    assert RESOLVER.resolve(headers, custom_params) == expected


NO_MILLISECONDS = [-1, 0.999, math.nan, math.inf, -math.inf, 10**400]
NO_MILLISECONDS += [True, False, "100", "", [], {}]
NO_MILLISECONDS_AS_TEXT = ["", " ", "-1", "0.5", "nan", "inf", "-inf", "1e400", "fast"]
NO_MILLISECONDS_AS_TEXT += ["100ms", "0x10", "1,5"]


@pytest.mark.parametrize(
    ("name", "too_large"), [("ttft_slo_ms", 604_800_001), ("tpot_slo_ms", 60_000.1)]
)
def test_body_refuses_what_is_no_number_of_milliseconds(name, too_large):
    """Negatives, non-numbers, text, booleans and absurd sizes are the caller's fault."""
    for value in [*NO_MILLISECONDS, too_large]:
        with pytest.raises(SloError) as caught:
            RESOLVER.resolve(None, {name: value})
        assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "too_large"), [("ttft_slo_ms", "604800001"), ("tpot_slo_ms", "60000.1")]
)
def test_header_refuses_what_is_no_number_of_milliseconds(name, too_large):
    """A header that cannot be an objective is an error, not the default."""
    for text in [*NO_MILLISECONDS_AS_TEXT, too_large]:
        with pytest.raises(SloError) as caught:
            header(**{name: text})
        assert caught.value.field == "x-slo-" + name.replace("_slo_", "-")


@pytest.mark.parametrize("name", ["", "CHAT", "chat ", "default", 5, True, [], {}, ["chat"]])
def test_unknown_class_is_refused_with_the_known_ones(name):
    """The message lists what the server knows, whatever type the caller sent."""
    with pytest.raises(SloError, match="known: batch, chat, voice") as caught:
        RESOLVER.resolve(None, {"slo_class": name})
    assert caught.value.field == "slo_class"


def test_class_on_a_server_without_classes_points_to_the_setting():
    """The operator learns which flag is missing."""
    resolver = SloResolver(SloClasses({}, Slo(1.0)))
    with pytest.raises(SloError, match="--flowprefill-slo-config"):
        resolver.resolve(header(None, "chat"), None)


@pytest.mark.parametrize(
    ("headers", "custom_params", "field"),
    [
        (header("100"), {"ttft_slo_ms": 200}, "x-slo-ttft-ms"),
        (header(None, "chat"), {"slo_class": "batch"}, "x-slo-class"),
        (header(None, None, "10"), {"tpot_slo_ms": 11}, "x-slo-tpot-ms"),
    ],
)
def test_header_and_body_that_disagree_are_an_error(headers, custom_params, field):
    """Neither silently wins."""
    with pytest.raises(SloError, match="says") as caught:
        RESOLVER.resolve(headers, custom_params)
    assert caught.value.field == field


@pytest.mark.parametrize("custom_params", ["chat", 5, 0, False, [], [{"slo_class": "chat"}]])
def test_custom_params_must_be_an_object(custom_params):
    """Anything else cannot carry named values."""
    with pytest.raises(SloError) as caught:
        RESOLVER.resolve(None, custom_params)
    assert caught.value.field == "custom_params"


def test_long_values_are_cut_in_messages():
    """An attacker's megabyte does not come back in the error."""
    with pytest.raises(SloError) as caught:
        header("9" * 10_000 + "x")
    assert len(str(caught.value)) < 200


def test_slo_error_is_a_value_error_and_ours():
    """SGLang's routes answer 400 to a ValueError; our callers catch the base class."""
    assert issubclass(SloError, ValueError)
    assert issubclass(SloError, FlowPrefillError)


# ---- stamped parameters ----


def test_stamp_fills_all_three_keys_and_keeps_the_rest():
    """The scheduler process reads nothing but these keys."""
    stamped = RESOLVER.stamped_params(header("250", "chat"), {"mine": 1}, now_unix_s=2000.0)
    assert stamped == {
        "mine": 1,
        "ttft_slo_ms": 250.0,
        "slo_class": "chat",
        "flowprefill_arrival_unix_s": 1000.0,
    }


def test_outside_http_arrival_is_now():
    """``sglang.Engine`` has no headers; the stamp is the time of the call."""
    stamped = RESOLVER.stamped_params(None, None, now_unix_s=2000.0)
    assert stamped["flowprefill_arrival_unix_s"] == 2000.0


@pytest.mark.parametrize("headers", [None, header()])
def test_callers_do_not_choose_their_arrival(headers):
    """An arrival that a caller sends is overwritten: it would buy priority."""
    forged = {"flowprefill_arrival_unix_s": -1e9}
    stamped = RESOLVER.stamped_params(headers, forged, now_unix_s=1000.0)
    assert stamped["flowprefill_arrival_unix_s"] == 1000.0


def test_stamping_does_not_change_what_was_received():
    """The caller's dictionary may be shared between requests."""
    received = {"ttft_slo_ms": 100}
    RESOLVER.stamped_params(None, received, now_unix_s=0.0)
    assert received == {"ttft_slo_ms": 100}


@pytest.mark.parametrize(
    "name", ["x-llm-d-slo-ttft-ms", "x-request-id-slo-ttft-ms", "X-SLO-TTFT-MS"]
)
def test_aliases_of_a_header_count(name):
    """Names of llm-d, and names that sglang-router lets through."""
    assert RESOLVER.resolve(said((name, "250")), None) == Slo(0.25)


def test_aliases_may_agree_and_must():
    """A router that adds the new name beside the old one is right; two values are an error."""
    both = said(("x-slo-ttft-ms", "250"), ("x-llm-d-slo-ttft-ms", "250"))
    assert both.ttft_slo_ms == 250.0
    with pytest.raises(SloError, match="says") as caught:
        said(("x-slo-ttft-ms", "250"), ("x-llm-d-slo-ttft-ms", "251"))
    assert caught.value.field == "x-llm-d-slo-ttft-ms"


def test_no_key_of_the_server_counts_that_a_caller_sends():
    """Arrival, rules and growth are the server's to say."""
    forged = {
        "flowprefill_arrival_unix_s": 0.0,
        "flowprefill_slo_rules": [["voice", 1, None]],
        "flowprefill_slo_factor": 99.0,
    }
    stamped = RESOLVER.stamped_params(header("250"), forged, now_unix_s=2000.0)
    assert RESOLVER.stamped_slo(stamped, 10) == Slo(0.25)
    assert stamped["flowprefill_arrival_unix_s"] == 1000.0


# ---- who may choose ----

GOLD_RULE = [MatchRule("gold", {"x-tier": "gold"})]


def resolver(authority="caller", bounds=NO_BOUNDS, gold_bounds=NO_BOUNDS):
    """A server with a class that rules give and one that is open."""
    classes = {
        "gold": SloClass(200.0, 50.0, bounds=gold_bounds),
        "open": SloClass(5000.0),
    }
    return SloResolver(SloClasses(classes, Slo(1.0), GOLD_RULE, bounds, authority))


def test_a_claim_below_the_floor_counts_as_the_floor():
    """Of the server, and of the class; the tighter bound holds."""
    server = resolver(bounds=Bounds(min_ttft_slo_ms=50.0, min_tpot_slo_ms=20.0))
    assert server.resolve(header("1", None, "1"), None) == Slo(0.05, tpot_s=0.02)
    stamped = server.stamped_params(header("1", None, "1"), None, 0.0)
    assert server.stamped_slo(stamped, 10) == Slo(0.05, tpot_s=0.02)
    gold = resolver(gold_bounds=Bounds(min_ttft_slo_ms=100.0, max_ttft_slo_ms=300.0))
    assert gold.resolve(header("1", "gold"), None).ttft_s == 0.1
    assert gold.resolve(header("1000", "gold"), None).ttft_s == 0.3


@pytest.mark.parametrize("stated", [("250", None, None), (None, "open", None), (None, None, "90")])
def test_where_rules_choose_a_claim_is_an_error(stated):
    """Not ignored: the caller learns that it has no say."""
    with pytest.raises(SloError, match="rules choose"):
        resolver("rules").resolve(header(*stated), None)
    assert resolver("rules").resolve(header(), None) == Slo(1.0)


def test_a_clamped_caller_takes_no_class_that_rules_deny():
    """An open class is free; one with rules needs a rule that holds."""
    server = resolver("clamped")
    assert server.resolve(header(None, "open"), None) == Slo(5.0, "open")
    with pytest.raises(SloError, match="is given by this server's rules"):
        server.resolve(header(None, "gold"), None)
    entitled = replace(header(None, "gold"), matched_headers={"x-tier": "gold"})
    assert server.resolve(entitled, None) == Slo(0.2, "gold", 0.05)


def test_a_clamped_caller_may_ask_for_less_but_not_for_more():
    """Objectives tighter than its class's count as the class's."""
    server = resolver("clamped")
    assert server.resolve(header("100", "open"), None) == Slo(5.0, "open")
    assert server.resolve(header("9000", "open"), None) == Slo(9.0, "open")
    assert server.resolve(header("1"), None) == Slo(1.0)
    entitled = replace(header(None, "gold", "1"), matched_headers={"x-tier": "gold"})
    assert server.resolve(entitled, None).tpot_s == 0.05


# ---- objectives that grow with the prompt ----


def test_an_objective_grows_by_the_predicted_time_where_nothing_is_stated():
    """The stamp carries base and factor; what a caller states stands as it is."""
    growing = SloResolver(
        SloClasses({"docs": SloClass(200.0, predicted_factor=3.0)}, Slo(1.0, predicted_factor=5.0))
    )
    default = growing.stamped_slo(growing.stamped_params(None, None, 0.0), 10)
    assert default == Slo(1.0, predicted_factor=5.0)
    assert default.grown(2.0) == Slo(11.0, is_soft=True)
    docs = growing.stamped_slo(growing.stamped_params(header(None, "docs"), None, 0.0), 10)
    assert docs.grown(2.0) == Slo(6.2, "docs", is_soft=True)
    stated = growing.stamped_slo(growing.stamped_params(header("250", "docs"), None, 0.0), 10)
    assert stated == Slo(0.25, "docs")


def test_rules_for_lengths_travel_by_name():
    """A scheduler whose list of rules differs still gives the class that was meant."""
    rules = [MatchRule("chat", min_prompt_tokens=1, max_prompt_tokens=100)]
    sender = SloResolver(SloClasses({"chat": SloClass(200.0)}, Slo(1.0), rules))
    receiver = SloResolver(
        SloClasses({"other": SloClass(1.0), "chat": SloClass(200.0)}, Slo(1.0), [])
    )
    stamped = sender.stamped_params(None, None, 0.0)
    assert receiver.stamped_slo(stamped, 50) == Slo(0.2, "chat")
    assert receiver.stamped_slo(stamped, 500) == Slo(1.0)
