"""Rules that give a class to requests that name none."""

import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.api import HeaderSlo, MatchRule, SloClass, SloClasses, SloResolver
from sglang_flowprefill.api.matching import unreachable_rules
from sglang_flowprefill.api.slo import read_headers
from sglang_flowprefill.core import Slo
from sglang_flowprefill.errors import SloError

GOLD = MatchRule("gold", {"x-tier": "gold"})
GOLD_EU = MatchRule("gold", {"x-tier": "gold", "x-region": "eu"})
FAST = MatchRule("fast", model="fast")
SHORT = MatchRule("short", max_prompt_tokens=100)
MIDDLE = MatchRule("middle", min_prompt_tokens=50, max_prompt_tokens=200)
LONG = MatchRule("long", min_prompt_tokens=101)
SHORT_GOLD = MatchRule("gold", {"x-tier": "gold"}, None, 1, 100)

BY_NAME = {
    "gold": SloClass(100.0, tpot_slo_ms=20.0),
    "fast": SloClass(200.0),
    "short": SloClass(300.0, tpot_slo_ms=30.0),
    "middle": SloClass(400.0, decode_first=True),
    "long": SloClass(500.0),
}


def resolver(*rules, default=Slo(1.0)):  # noqa: B008 (frozen)
    """Return a resolver with these rules."""
    return SloResolver(SloClasses(BY_NAME, default, rules))


def request(model=None, ttft_slo_ms=None, class_name=None, tpot_slo_ms=None, **headers):
    """Return what HTTP says of a request; keywords are headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HeaderSlo(0.0, ttft_slo_ms, class_name, tpot_slo_ms, named, model)


def class_of(resolver, header, num_prompt_tokens):
    """Resolve in one step and in the two of a server; both give the same class."""
    at_once = resolver.resolve(header, None, num_prompt_tokens)
    stamp = resolver.stamped_params(header, None, 0.0)
    assert resolver.stamped_slo(stamp, num_prompt_tokens) == at_once
    return at_once.class_name


@pytest.mark.parametrize(
    ("rules", "header", "num_prompt_tokens", "expected"),
    [
        pytest.param([GOLD], request(x_tier="gold"), 10, "gold", id="header"),
        pytest.param([GOLD], request(x_tier="Gold"), 10, "default", id="values are exact"),
        pytest.param([GOLD], request(), 10, "default", id="header not sent"),
        pytest.param([GOLD_EU], request(x_tier="gold"), 10, "default", id="one of two headers"),
        pytest.param(
            [GOLD_EU], request(x_tier="gold", x_region="eu"), 10, "gold", id="both headers"
        ),
        pytest.param([FAST], request("fast"), 10, "fast", id="model"),
        pytest.param([FAST], request("faster"), 10, "default", id="another model"),
        pytest.param([FAST], request(), 10, "default", id="no model"),
        pytest.param([SHORT], request(), 100, "short", id="longest that is short"),
        pytest.param([SHORT], request(), 101, "default", id="too long"),
        pytest.param([LONG], request(), 101, "long", id="shortest that is long"),
        pytest.param([LONG], request(), 100, "default", id="too short"),
        pytest.param([SHORT_GOLD], request(x_tier="gold"), 100, "gold", id="header and length"),
        pytest.param([SHORT_GOLD], request(x_tier="gold"), 101, "default", id="header, too long"),
        pytest.param([SHORT_GOLD], request(), 100, "default", id="length, no header"),
        pytest.param([SHORT, MIDDLE], request(), 60, "short", id="the first wins"),
        pytest.param([MIDDLE, SHORT], request(), 60, "middle", id="in file order"),
        pytest.param([SHORT, GOLD], request(x_tier="gold"), 60, "short", id="length first"),
        pytest.param([SHORT, GOLD], request(x_tier="gold"), 600, "gold", id="then header"),
        pytest.param([GOLD, SHORT], request(x_tier="gold"), 60, "gold", id="header first"),
        pytest.param([GOLD, SHORT, LONG], None, 600, "long", id="outside HTTP only lengths count"),
        pytest.param([], request("fast", x_tier="gold"), 5, "default", id="no rules"),
    ],
)
def test_first_rule_that_holds_gives_its_class(rules, header, num_prompt_tokens, expected):
    """All conditions of a rule must hold; file order decides among rules."""
    assert class_of(resolver(*rules), header, num_prompt_tokens) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (request(class_name="long", x_tier="gold"), Slo(0.5, "long")),
        (request(ttft_slo_ms=50.0, x_tier="gold"), Slo(0.05, "default")),
        (request(tpot_slo_ms=7.0, x_tier="gold"), Slo(0.1, "gold", 0.007)),
        (request(x_tier="gold"), Slo(0.1, "gold", 0.02)),
        (request(tpot_slo_ms=7.0), Slo(0.3, "short", 0.007)),
    ],
    ids=["class", "TTFT", "TPOT beats the class's", "nothing", "TPOT, class by length"],
)
def test_what_the_caller_states_beats_rules(header, expected):
    """A class or a TTFT keeps rules out; a TPOT replaces that of the matched class."""
    rules = resolver(GOLD, SHORT)
    assert rules.resolve(header, None, 60) == expected
    assert rules.stamped_slo(rules.stamped_params(header, None, 0.0), 60) == expected


def test_decode_first_goes_with_the_class():
    """Whether the caller names it, or a rule gives it."""
    rules = resolver(MIDDLE)
    assert rules.resolve(None, {"slo_class": "middle", "ttft_slo_ms": 50}).decode_first
    assert rules.stamped_slo(rules.stamped_params(None, None, 0.0), 60).decode_first
    assert not rules.stamped_slo(rules.stamped_params(None, None, 0.0), 600).decode_first


def test_unknown_length_matches_no_rule_that_asks_for_one():
    """Until the prompt is tokenized nobody knows."""
    assert resolver(SHORT, LONG).resolve(None, None) == Slo(1.0)


def test_stamp_names_the_rules_that_the_length_decides_on():
    """Only those before the first rule that holds for any length; that one is the fallback."""
    stamp = resolver(FAST, SHORT, GOLD, LONG).stamped_params(request(x_tier="gold"), None, 0.0)
    assert stamp["flowprefill_slo_rules"] == [["short", 1, 100]]
    assert (stamp["slo_class"], stamp["ttft_slo_ms"]) == ("gold", 100.0)


def test_callers_do_not_write_the_stamp():
    """Rules and arrival that a caller sends do not reach the scheduler."""
    forged = {"flowprefill_slo_rules": [0], "flowprefill_arrival_unix_s": -1.0, "mine": 1}
    stamp = resolver(GOLD, SHORT).stamped_params(request(ttft_slo_ms=50.0), forged, 3.0)
    assert stamp == {
        "mine": 1,
        "ttft_slo_ms": 50.0,
        "slo_class": "default",
        "flowprefill_arrival_unix_s": 0.0,
    }


@pytest.mark.parametrize("params", [None, {}, {"other": 1}])
def test_without_a_stamp_the_default_applies(params):
    """Prompts of the engine's own warm-up pass no HTTP and no rules."""
    default = Slo(2.0, "long")
    assert resolver(SHORT, default=default).stamped_slo(params, 10) == default


@pytest.mark.parametrize("name", ["nobody's", "", None, 5])
def test_statistics_know_no_names_but_those_of_the_file(name):
    """Whatever stands in a stamp, a label of a metric is a class of the file or ``default``."""
    slo = resolver().stamped_slo({"ttft_slo_ms": 50.0, "slo_class": name}, 10)
    assert slo == Slo(0.05, "default")


def test_file_default_applies_where_no_rule_does():
    """The ``default`` class of the file, with its TPOT or the caller's."""
    rules = resolver(GOLD, default=Slo(0.3, "short", 0.03))
    assert class_of(rules, request(), 10) == "short"
    assert rules.resolve(request(tpot_slo_ms=7.0), None) == Slo(0.3, "short", 0.007)


# ---- rules that can never match ----


def lengths(least, most, **conditions):
    """Return a rule for prompts of these lengths."""
    return MatchRule("short", min_prompt_tokens=least, max_prompt_tokens=most, **conditions)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([GOLD, FAST, SHORT, LONG], [], id="all can match"),
        pytest.param([GOLD, GOLD], [(1, [0])], id="the same twice"),
        pytest.param([GOLD, GOLD_EU], [(1, [0])], id="more headers than an earlier one"),
        pytest.param([GOLD_EU, GOLD], [], id="the more special first"),
        pytest.param([GOLD, SHORT_GOLD], [(1, [0])], id="any length, then short ones"),
        pytest.param([SHORT_GOLD, GOLD], [], id="short ones, then any length"),
        pytest.param([SHORT, SHORT_GOLD], [(1, [0])], id="any header, then one"),
        pytest.param([SHORT, LONG, GOLD], [(2, [0, 1])], id="two together take all lengths"),
        pytest.param([SHORT, lengths(102, None), GOLD], [], id="but for one length"),
        pytest.param([lengths(1, 9), lengths(10, 20), lengths(5, 15)], [(2, [0, 1])], id="inside"),
        pytest.param([lengths(1, 9), lengths(5, 15)], [], id="overlap"),
        pytest.param([lengths(1, 9), lengths(1, 99), lengths(2, 8)], [(2, [1])], id="one suffices"),
        pytest.param([lengths(1, 50, model="a"), lengths(1, 50)], [], id="another model's"),
        pytest.param([FAST, lengths(1, 50, model="fast")], [(1, [0])], id="this model's"),
    ],
)
def test_unreachable_rules_are_found(rules, expected):
    """A rule whose requests are all taken by earlier ones, alone or together."""
    assert [(index, list(takers)) for index, takers in unreachable_rules(rules)] == expected


small_rules = st.builds(
    lambda headers, model, least, more: MatchRule(
        "short", headers, model, least, None if more is None else least + more
    ),
    st.dictionaries(st.sampled_from(["x-a", "x-b"]), st.sampled_from(["1", "2"])),
    st.sampled_from([None, "m"]),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 3)),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(small_rules, max_size=6))
def test_a_rule_is_unreachable_exactly_if_no_request_reaches_it(rules):
    """Against trying every request that the conditions can tell apart."""
    values = [None, "1", "2", "other"]  # "other" stands for all that no rule names
    reached = set()
    for a, b, model, length in itertools.product(values, values, [None, "m", "other"], range(1, 9)):
        sent = {name: value for name, value in (("x-a", a), ("x-b", b)) if value is not None}
        for index, rule in enumerate(rules):
            if rule.holds_at_the_door(sent, model) and rule.holds_for_length(length):
                reached.add(index)
                break
    assert set(range(len(rules))) - reached == {index for index, _ in unreachable_rules(rules)}


# ---- anything that callers may send ----

RULES = resolver(GOLD, SHORT, FAST, LONG, default=Slo(0.3, "short", 0.03))

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
milliseconds = st.one_of(st.just(50), st.floats(1, 60_000), st.integers(1, 60_000), anything)
header_texts = st.one_of(st.none(), st.just("50"), milliseconds.map(str), st.text(max_size=8))
class_names = st.sampled_from(["gold", "short", "default", "nobody's"])


@dataclass(frozen=True)
class RawHeaders:
    """Headers as they are sent."""

    ttft: str | None
    class_name: str | None
    tpot: str | None
    others: dict
    model: str | None

    def read(self):
        """Return what they say."""
        sent = {"x-slo-ttft-ms": self.ttft, "x-slo-class": self.class_name}
        sent |= {"x-slo-tpot-ms": self.tpot, **self.others}
        raw = [(k.encode(), v.encode("utf-8")) for k, v in sent.items() if v is not None]
        return replace(read_headers(raw, {"x-tier"}), model=self.model)


custom_params = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "ttft_slo_ms": milliseconds,
            "tpot_slo_ms": milliseconds,
            "slo_class": st.one_of(class_names, anything),
            "flowprefill_slo_rules": anything,
            "flowprefill_arrival_unix_s": anything,
        },
    ),
    anything,
)
headers = st.one_of(
    st.none(),
    st.builds(
        RawHeaders,
        header_texts,
        st.one_of(st.none(), class_names, st.text(max_size=5)),
        header_texts,
        st.dictionaries(st.just("x-tier"), st.sampled_from(["gold", "tin"])),
        st.sampled_from([None, "fast", "slow"]),
    ),
)


@settings(deadline=None)
@given(headers, custom_params, st.integers(1, 300))
def test_any_request_gets_an_slo_within_bounds_or_an_slo_error(raw, params, num_prompt_tokens):
    """In one step as in two; with a class of the file or ``default``; the stated beats the rest."""
    try:
        header = None if raw is None else raw.read()
    except SloError:
        return
    try:
        slo = RULES.resolve(header, params, num_prompt_tokens)
    except SloError:
        with pytest.raises(SloError):
            RULES.stamped_params(header, params, 0.0)
        return
    assert 0.0 <= slo.ttft_s <= 604_800.0
    assert slo.tpot_s is None or 0.001 <= slo.tpot_s <= 60.0
    assert slo.class_name in {*BY_NAME, "default"}
    stamped = RULES.stamped_slo(RULES.stamped_params(header, params, 0.0), num_prompt_tokens)
    assert (stamped.class_name, stamped.ttft_s) == (slo.class_name, pytest.approx(slo.ttft_s))
    assert (stamped.tpot_s, stamped.decode_first) == (slo.tpot_s, slo.decode_first)
    for name, got_s in (("ttft_slo_ms", slo.ttft_s), ("tpot_slo_ms", slo.tpot_s)):
        stated = [value for value in stated_values(header, params, name) if value is not None]
        assert all(max(float(value), 1.0) / 1000.0 == got_s for value in stated)
    assert all(
        name == slo.class_name for name in stated_values(header, params, "slo_class") if name
    )


def stated_values(header, params, name):
    """Return what header and body say under a name of the body."""
    attribute = "class_name" if name == "slo_class" else name
    return [
        None if header is None else getattr(header, attribute),
        None if params is None else params.get(name),
    ]
