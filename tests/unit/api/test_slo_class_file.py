"""The YAML file with SLO classes."""

import math
import re
from pathlib import Path

import pytest

from sglang_flowprefill.api import MatchRule, SloClass, load_slo_classes
from sglang_flowprefill.api.class_file import ServerSlo
from sglang_flowprefill.api.classes import Bounds
from sglang_flowprefill.core import ClassAttainment, Slo
from sglang_flowprefill.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a file of this text."""

    def load_text(text):
        path = tmp_path / "slo.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_slo_classes(str(path), ServerSlo(1500.0))

    return load_text


def test_without_a_file_there_is_only_the_default():
    """No file, no classes."""
    classes = load_slo_classes(None, ServerSlo(1500.0))
    assert (classes.by_name, classes.rules) == ({}, ())
    assert classes.default == Slo(1.5, "default")


def test_classes_and_default(load):
    """The default may be one of the classes."""
    classes = load(
        "classes:\n  chat: {ttft_slo_ms: 250}\n  batch: {ttft_slo_ms: 9.0e+3}\ndefault: chat\n"
    )
    assert classes.ttft_slo_ms == {"chat": 250.0, "batch": 9000.0}
    assert classes.default == Slo(0.25, "chat")


def test_without_a_default_class_the_flag_applies(load):
    """Requests that name no class get the server's own objective."""
    assert load("classes: {chat: {ttft_slo_ms: 250}}").default == Slo(1.5, "default")


FULL = """
classes:
  interactive:
    ttft_slo_ms: 500
    tpot_slo_ms: 50
    weight: 4
    overload: reject
    decode_first: true
    match:
      - header: {X-Tier: gold}
      - {model: fast, max_prompt_tokens: 2000}
  document:
    ttft_slo_ms: 15000
    overload: degrade
    match:
      - {min_prompt_tokens: 2001, max_prompt_tokens: 30000}
  batch: {ttft_slo_ms: 600000, overload: none}
default: interactive
"""


def test_everything_that_a_class_can_say(load):
    """Every documented key is read; what a class does not say is left to the server."""
    classes = load(FULL)
    assert dict(classes.by_name) == {
        "interactive": SloClass(500.0, 50.0, 4.0, "reject", decode_first=True),
        "document": SloClass(15_000.0, None, 1.0, "degrade"),
        "batch": SloClass(600_000.0, None, 1.0, "none"),
    }
    assert classes.default == Slo(0.5, "interactive", 0.05, decode_first=True)
    assert list(classes.rules) == [
        MatchRule("interactive", {"x-tier": "gold"}),
        MatchRule("interactive", model="fast", max_prompt_tokens=2000),
        MatchRule("document", min_prompt_tokens=2001, max_prompt_tokens=30_000),
    ]
    assert classes.matched_headers == {"x-tier"}
    assert classes.matches_models


@pytest.mark.parametrize(
    ("name", "server", "expected"),
    [
        ("interactive", "off", "reject"),
        ("document", "reject", "degrade"),
        ("batch", "reject", "off"),
        ("plain", "degrade", "degrade"),
        ("default", "reject", "reject"),
    ],
)
def test_overload_of_a_class_beats_the_servers(load, name, server, expected):
    """A class that says nothing, and requests of none, do what the server does."""
    classes = load(FULL.replace("default: interactive", "  plain: {ttft_slo_ms: 5}"))
    assert classes.admission_mode(name, server) == expected


def test_weighted_attainment_counts_classes_by_their_weight(load):
    """One first token of a class of weight 4 counts as four; classes not in the file count one."""
    classes = load(FULL)
    attainment = {"interactive": ClassAttainment(2, 1), "default": ClassAttainment(2, 2)}
    assert classes.weighted_attainment(attainment) == (4 * 1 + 2) / (4 * 2 + 2)
    assert classes.weighted_attainment({}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a valid SLO class file"),
        ("classes: [", "not a valid SLO class file"),
        (b"\xff\xff\xff", "not a valid SLO class file"),
        ("default: chat", "missing required field `classes`"),
        ("classes: {}\nclases: {}", "unknown field `clases`"),
        ("classes: {7: {ttft_slo_ms: 250}}", "Expected `str`"),
        ("classes: !!python/object/apply:os.getcwd []", "not a valid SLO class file"),
        ("classes: {chat: {ttft_slo_ms: 5}}\ndefault: bulk", "default: choose one of chat"),
        ("classes: {}\ndefault: bulk", "default: choose one of none: the file has no classes"),
    ],
)
def test_malformed_files_stop_the_start(load, text, message):
    """The message says what is wrong, and with which key where there is one."""
    with pytest.raises(ConfigError, match=message):
        load(text)


RANGE = "must be between 1 and 604800000 milliseconds"
TPOT_RANGE = "must be between 1 and 60000 milliseconds"
CLASS_KEYS = (
    "allowed: ttft_slo_ms, ttft_slo, tpot_slo_ms, weight, overload, decode_first, "
    "min_ttft_slo_ms, max_ttft_slo_ms, min_tpot_slo_ms, max_tpot_slo_ms, match"
)
RULE_KEYS = "header, model, min_prompt_tokens, max_prompt_tokens"
NO_VALUE = "must be printable ASCII without white space at its ends"


@pytest.mark.parametrize(
    ("entry", "path", "problem", "value"),
    [
        ("250", "", "Expected `object`, got `int`", 250),
        ("{}", "", "missing required field `ttft_slo_ms`", {}),
        ("{ttft_slo_ms: 1, tpot: 5}", "", CLASS_KEYS, {"ttft_slo_ms": 1, "tpot": 5}),
        ("{ttft_slo_ms: '250'}", ".ttft_slo_ms", "Expected `float`, got `str`", "250"),
        ("{ttft_slo_ms: true}", ".ttft_slo_ms", "Expected `float`, got `bool`", True),
        ("{ttft_slo_ms: 0}", ".ttft_slo_ms", RANGE, 0.0),
        ("{ttft_slo_ms: -5}", ".ttft_slo_ms", RANGE, -5.0),
        ("{ttft_slo_ms: .inf}", ".ttft_slo_ms", RANGE, math.inf),
        ("{ttft_slo_ms: 604800001}", ".ttft_slo_ms", RANGE, 604_800_001.0),
        ("{ttft_slo_ms: 9, tpot_slo_ms: 0.5}", ".tpot_slo_ms", TPOT_RANGE, 0.5),
        ("{ttft_slo_ms: 9, tpot_slo_ms: 60001}", ".tpot_slo_ms", TPOT_RANGE, 60_001.0),
        ("{ttft_slo_ms: 9, weight: 0}", ".weight", "above 0 and at most 1000", 0.0),
        ("{ttft_slo_ms: 9, weight: -1}", ".weight", "above 0 and at most 1000", -1.0),
        ("{ttft_slo_ms: 9, weight: 1001}", ".weight", "above 0 and at most 1000", 1001.0),
        ("{ttft_slo_ms: 9, weight: heavy}", ".weight", "Expected `float`, got `str`", "heavy"),
        (
            "{ttft_slo_ms: 9, overload: drop}",
            ".overload",
            "choose one of reject, degrade, none",
            "drop",
        ),
        ("{ttft_slo_ms: 9, overload: off}", ".overload", "got `bool`", False),
        ("{ttft_slo_ms: 9, ttft_slo: 5}", ".ttft_slo", "Expected `str | null`", 5),
        ("{ttft_slo_ms: 9, ttft_slo: fast}", ".ttft_slo", "must read 'predicted x N'", "fast"),
        (
            "{ttft_slo_ms: 9, ttft_slo: predicted x 0.5}",
            ".ttft_slo",
            "with N from 1 to 1000",
            "predicted x 0.5",
        ),
        ("{ttft_slo_ms: 9, min_ttft_slo_ms: 0}", ".min_ttft_slo_ms", RANGE, 0.0),
        (
            "{ttft_slo_ms: 9, min_tpot_slo_ms: 9, max_tpot_slo_ms: 8}",
            ".min_tpot_slo_ms",
            "must not exceed max_tpot_slo_ms (8)",
            9.0,
        ),
        ("{ttft_slo_ms: 9, decode_first: 1}", ".decode_first", "Expected `bool`, got `int`", 1),
        ("{ttft_slo_ms: 9, match: []}", ".match", "must not be empty; leave it out", []),
        ("{ttft_slo_ms: 9, match: {}}", ".match", "Expected `array | null`", {}),
        ("{ttft_slo_ms: 9, match: [{}]}", ".match[0]", f"name at least one of {RULE_KEYS}", {}),
        (
            "{ttft_slo_ms: 9, match: [{header: {}}]}",
            ".match[0]",
            f"name at least one of {RULE_KEYS}",
            {"header": {}},
        ),
        (
            "{ttft_slo_ms: 9, match: [{model: a}, {path: /b}]}",
            ".match[1]",
            f"unknown field `path`; allowed: {RULE_KEYS}",
            {"path": "/b"},
        ),
        ("{ttft_slo_ms: 9, match: [{model: ''}]}", ".match[0].model", "must not be empty", ""),
        (
            "{ttft_slo_ms: 9, match: [{min_prompt_tokens: 0}]}",
            ".match[0].min_prompt_tokens",
            "must be at least 1",
            0,
        ),
        (
            "{ttft_slo_ms: 9, match: [{max_prompt_tokens: -3}]}",
            ".match[0].max_prompt_tokens",
            "must be at least 1",
            -3,
        ),
        (
            "{ttft_slo_ms: 9, match: [{max_prompt_tokens: 1.5}]}",
            ".match[0].max_prompt_tokens",
            "Expected `int | null`, got `float`",
            1.5,
        ),
        (
            "{ttft_slo_ms: 9, match: [{min_prompt_tokens: 9, max_prompt_tokens: 8}]}",
            ".match[0]",
            "min_prompt_tokens must not exceed max_prompt_tokens",
            {"min_prompt_tokens": 9, "max_prompt_tokens": 8},
        ),
        (
            "{ttft_slo_ms: 9, match: [{header: {x-tier: 1}}]}",
            ".match[0].header[...]",
            "Expected `str`, got `int`",
            {"x-tier": 1},
        ),
        (
            "{ttft_slo_ms: 9, match: [{header: {'x tier': a}}]}",
            ".match[0].header.x tier",
            "is not the name of a header",
            "a",
        ),
        (
            "{ttft_slo_ms: 9, match: [{header: {X-Slo-Class: a}}]}",
            ".match[0].header.X-Slo-Class",
            "states an SLO itself",
            "a",
        ),
        (
            "{ttft_slo_ms: 9, match: [{header: {x-a: '1', X-A: '2'}}]}",
            ".match[0].header.X-A",
            "is named twice",
            "2",
        ),
        (
            "{ttft_slo_ms: 9, match: [{header: {x-a: ' a'}}]}",
            ".match[0].header.x-a",
            NO_VALUE,
            " a",
        ),
        ("{ttft_slo_ms: 9, match: [{header: {x-a: ü}}]}", ".match[0].header.x-a", NO_VALUE, "ü"),
    ],
)
def test_bad_values_are_reported_with_path_value_and_what_is_allowed(
    load, entry, path, problem, value
):
    """The operator finds the line, sees what it says, and what it may say."""
    with pytest.raises(ConfigError) as caught:
        load(f"classes: {{chat: {entry}}}")
    message = str(caught.value)
    assert message.startswith(f"--flowprefill-slo-config: classes.chat{path}: ")
    assert problem in message
    assert caught.value.value == value
    assert message.endswith(f"(got {value!r})")


def test_rule_that_can_never_match_stops_the_start(load):
    """Both rules are named, across classes."""
    text = """
    classes:
      small: {ttft_slo_ms: 9, match: [{max_prompt_tokens: 100}, {model: a}]}
      rest: {ttft_slo_ms: 9, match: [{header: {x-a: b}, model: a}]}
    """
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value) == (
        "--flowprefill-slo-config: classes.rest.match[0]: can never match: classes.small.match[1], "
        "earlier in the file, takes all of its requests (got {'header': {'x-a': 'b'}, "
        "'model': 'a'})"
    )


@pytest.mark.parametrize("page", ["reference/slo.md", "how-to/tune-slo-classes.md"])
def test_examples_of_the_documentation_load(load, page):
    """Whoever copies one starts a server."""
    text = (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert examples
    assert all(load(example).rules for example in examples)


def test_missing_file_is_named(tmp_path):
    """A path that cannot be read is a settings error, not a traceback."""
    missing = str(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="No such file") as caught:
        load_slo_classes(missing, ServerSlo(1000.0))
    assert caught.value.value == missing


def test_a_class_may_grow_with_its_prompts_and_bound_its_callers(load):
    """``predicted x N`` adds to the objective; bounds are the class's own."""
    classes = load(
        "classes: {docs: {ttft_slo_ms: 200, ttft_slo: predicted x 2.5, min_ttft_slo_ms: 100}}"
    )
    docs = classes.by_name["docs"]
    assert (docs.predicted_factor, docs.bounds) == (2.5, Bounds(min_ttft_slo_ms=100.0))
    assert classes.slo("docs").grown(4.0).ttft_s == 10.2
