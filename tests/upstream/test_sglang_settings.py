"""The table of SGLang's settings speaks of every one of them, and of no other."""

from types import SimpleNamespace

import pytest
from sglang.srt.server_args import ServerArgs

from sglang_flowprefill.adapter.sglang_settings import (
    RULES,
    UNTOUCHED,
    Proof,
    Treatment,
    is_classified,
    rule_for,
)
from sglang_flowprefill.adapter.unsupported import (
    refused_settings,
    refused_variables,
    require_supported_scheduler,
)
from sglang_flowprefill.errors import UnsupportedSGLangError

FIELDS = frozenset(ServerArgs.__struct_fields__)


def test_every_setting_of_sglang_is_classified():
    """A setting that is new in a release fails here until somebody has looked at it."""
    assert {name for name in FIELDS if not is_classified(name)} == set()


def test_the_table_speaks_of_settings_that_exist_and_of_each_once():
    """A row of a setting that is gone, or of one that is untouched as well, is dead."""
    ruled = {rule.field for rule in RULES}
    assert ruled <= FIELDS
    assert UNTOUCHED <= FIELDS
    assert ruled & UNTOUCHED == set()


def test_every_row_says_why_and_every_refusal_what_to_do():
    """A refusal without a way on, or a row without a reason, helps nobody."""
    for rule in RULES:
        assert rule.why, rule
        assert rule.treatment is not Treatment.REFUSED or rule.instead, rule
        assert rule.treatment is not Treatment.TAKEN_OVER or rule.proof is Proof.RUN, rule


def test_defaults_ask_for_nothing():
    """A server without a flag passes, strict or not."""
    settings = ServerArgs(model_path="nowhere")
    assert refused_settings(settings) == []
    assert refused_settings(settings, is_strict=True) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("enable_mis", True),
        ("enable_layernorm_sp", True),
        ("speculative_algorithm", "EAGLE"),
        ("attention_backend", "wave"),
        ("moe_a2a_backend", "deepep"),
        ("pp_size", 2),
    ],
)
def test_what_would_break_is_refused(field, value):
    """With the flag, its value and what to write instead."""
    (problem,) = refused_settings(ServerArgs(model_path="nowhere", **{field: value}))
    assert problem.startswith(f"--{field.replace('_', '-')} {value}: ")
    assert "(instead: " in problem


def test_strict_refuses_what_is_taken_over_or_only_read():
    """And nothing that was run."""
    settings = ServerArgs(
        model_path="nowhere",
        chunked_prefill_size=512,
        kv_cache_dtype="fp8_e4m3",
        disable_radix_cache=True,
    )
    assert refused_settings(settings) == []
    chunks, kv_dtype = refused_settings(settings, is_strict=True)
    assert "taken over, which --flowprefill-strict refuses" in chunks
    assert "only read, which --flowprefill-strict refuses" in kv_dtype


def test_the_first_rule_that_speaks_of_a_value_holds():
    """Backends that are known go before the refusal of all others."""
    assert rule_for("attention_backend", "triton").treatment is Treatment.HONOURED
    assert rule_for("attention_backend", "dsa").treatment is Treatment.REFUSED
    assert rule_for("schedule_policy", "hrrn").why != rule_for("schedule_policy", "lpm").why


def test_variables_that_switch_our_hooks_off_are_refused():
    """SGLang's Rust server, unless it is switched off by the variable."""
    assert refused_variables({"SGLANG_RUST_SERVER": "0"}) == []
    (problem,) = refused_variables({"SGLANG_RUST_SERVER": "1"})
    assert problem.startswith("SGLANG_RUST_SERVER=1: ")


def scheduler_with(**facts):
    """Return what is looked at of SGLang's scheduler."""
    config = SimpleNamespace(
        model_path="m",
        is_generation=True,
        is_multimodal=False,
        is_encoder_decoder=False,
        use_ngram_embedding=facts.pop("use_ngram_embedding", False),
    )
    plain = {
        "is_hybrid_ssm": False,
        "is_hybrid_swa": False,
        "enable_overlap": False,
        "chunked_prefill_size": None,
        "truncation_align_size": None,
    }
    return SimpleNamespace(model_config=config, **plain | facts)


def test_an_alignment_of_cuts_above_our_chunk_is_refused():
    """Deterministic inference cuts prompts at multiples of it: ours would hold none."""
    require_supported_scheduler(scheduler_with(truncation_align_size=4096), 8192)
    with pytest.raises(UnsupportedSGLangError, match="max-chunk-tokens 4096 or more"):
        require_supported_scheduler(scheduler_with(truncation_align_size=4096), 512)


def test_models_with_ngram_embeddings_are_refused():
    """Their embedding of a token reads the tokens before it, from a table beside the batch."""
    with pytest.raises(UnsupportedSGLangError, match="n-gram embeddings"):
        require_supported_scheduler(scheduler_with(use_ngram_embedding=True), 8192)
