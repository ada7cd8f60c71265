"""The tables of request features name the fields that SGLang's requests have."""

from dataclasses import fields

import pytest
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

from sglang_flowprefill.api.body import SLO_KEYS
from sglang_flowprefill.api.request_features import HONOURED, REFUSED, require_servable
from sglang_flowprefill.errors import RequestError

KINDS = (GenerateReqInput, EmbeddingReqInput)


def test_every_field_of_a_request_has_an_answer():
    """A new one is refused on requests that use it; this test says which to read."""
    names = {spec.name for kind in KINDS for spec in fields(kind)}
    assert names - SLO_KEYS_SET <= HONOURED.keys() | REFUSED.keys()
    assert HONOURED.keys() | REFUSED.keys() <= names | SLO_KEYS_SET, "of no request any more"


SLO_KEYS_SET = set(SLO_KEYS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_request_of_sglang_is_served(kind):
    """None of its defaults looks like a feature that somebody asked for."""
    require_servable(kind(text="x", sampling_params={"max_new_tokens": 1}), 100)
    require_servable(kind(input_ids=[1, 2]), 100)


def test_sglangs_own_request_is_refused_for_a_token_that_does_not_exist():
    """Whatever its validator has made of the list."""
    with pytest.raises(RequestError, match="has no token -3"):
        require_servable(GenerateReqInput(input_ids=[5, -3]), 100)
