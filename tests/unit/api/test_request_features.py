"""What a request may ask for, and token ids that exist."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from sglang_flowprefill.api.request_features import HONOURED, REFUSED, require_servable
from sglang_flowprefill.errors import RequestError

VOCABULARY = 1000


@dataclass
class Request:
    """As much of SGLang's request as is looked at, and a field that nobody knows."""

    input_ids: Any = None
    sampling_params: Any = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = False
    invented_feature: Any = None
    invented_list: list = field(default_factory=list)


def refusal(**fields):
    """Return the error that a request with these fields gets."""
    with pytest.raises(RequestError) as caught:
        require_servable(Request(**fields), VOCABULARY)
    assert issubclass(RequestError, ValueError), "SGLang's routes answer 400 to a ValueError"
    assert len(str(caught.value)) < 300
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input_ids": [0, 999]},
        {"input_ids": []},
        {"input_ids": [[1, 2], [3]]},
        {"sampling_params": {"beam_width": 1, "n": 4}},
        {"sampling_params": [{"beam_width": None}, {}]},
        {"token_ids_logprob": [None, [5]]},
        {"return_hidden_states": False, "invented_feature": None, "invented_list": []},
    ],
    ids=str,
)
def test_what_is_known_passes(fields):
    """Fields at their defaults, and all that is served."""
    require_servable(Request(**fields), VOCABULARY)


@pytest.mark.parametrize(
    "ids",
    [
        [5, -3],
        [1000],
        [2**63],
        [-(2**70)],
        [1, 2.0],
        [True],
        ["7"],
        [None, 5],
        [[1], [2, -1]],
        [[1], ["x" * 10_000]],
        [1, [2]],
    ],
    ids=lambda ids: str(ids)[:30],
)
@pytest.mark.parametrize("name", ["input_ids", "token_ids_logprob"])
def test_a_token_that_does_not_exist_is_refused(name, ids):
    """It would end in an index error inside the forward pass, beside other people's prompts."""
    assert refusal(**{name: ids}).field == name


@pytest.mark.parametrize("params", [{"beam_width": 4}, [{}, {"beam_width": 2, "n": 2}]])
def test_beam_search_is_refused_with_the_reason(params):
    """On every prompt of a request."""
    error = refusal(sampling_params=params)
    assert error.field == "sampling_params.beam_width"
    assert "suspended" in str(error)


@pytest.mark.parametrize(
    "fields",
    [{"return_hidden_states": True}, {"invented_feature": 0}, {"invented_list": ["x"]}],
    ids=str,
)
def test_features_that_are_refused_or_unknown_are_never_tried(fields):
    """A field of a newer SGLang is refused until somebody has read what it does."""
    (name,) = fields
    assert refusal(**fields).field == name


def test_no_field_is_both_served_and_refused():
    """The tables are one answer."""
    assert not HONOURED.keys() & REFUSED.keys()
