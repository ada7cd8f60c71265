"""Judges a server's settings by the table, and its model by what SGLang knows of it.

Twice: on the parsed command line before anything starts, so that a refusal is a usage error naming
the flag, and in the scheduler process for facts only known there (model family).
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

import msgspec

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.sglang_settings import (
    REFUSED_VARIABLES,
    RULES,
    Proof,
    Rule,
    Treatment,
    rule_for,
)
from sglang_flowprefill.errors import UnsupportedSGLangError

_FALSE = ("", "0", "false", "no", "n", "off")


@dataclass(frozen=True, slots=True)
class JudgedSetting:
    """A setting with a value that the table speaks of.

    Attributes:
        rule: What becomes of it.
        value: As the user gave it.
    """

    rule: Rule
    value: Any

    def __str__(self) -> str:
        instead = f" (instead: {self.rule.instead})" if self.rule.instead else ""
        return f"{self.rule.flag} {self.value}: {self.rule.why}{instead}"


def judged_settings(settings: Any) -> list[JudgedSetting]:
    """Return what the table says of every setting that is not at SGLang's default.

    Args:
        settings: SGLang's ``ServerArgs``, as the user wrote it.
    """
    defaults = _defaults_of(settings)
    judged = []
    for field in dict.fromkeys(rule.field for rule in RULES):
        value = getattr(settings, field, None)
        if value is None or value == defaults.get(field):
            continue
        rule = rule_for(field, value)
        if rule is not None:
            judged.append(JudgedSetting(rule, value))
    return judged


def refused_settings(settings: Any, *, is_strict: bool = False) -> list[str]:
    """Name every flag of a command line that is refused, with its value and the reason.

    Args:
        settings: SGLang's ``ServerArgs``, as the user wrote it.
        is_strict: What is taken over, or only read, is refused too.
    """
    defaults = _defaults_of(settings)
    problems = [
        f"--{field.replace('_', '-')} {getattr(settings, field)}: {why}"
        for field, why in releases.startup().ALSO_REFUSED.items()
        if getattr(settings, field, None) not in {None, defaults.get(field)}
    ]
    for judged in judged_settings(settings):
        rule = judged.rule
        if rule.treatment is Treatment.REFUSED:
            problems.append(str(judged))
        elif is_strict and (rule.treatment is Treatment.TAKEN_OVER or rule.proof is Proof.READ):
            reason = rule.treatment.value if rule.treatment is Treatment.TAKEN_OVER else "only read"
            problems.append(f"{judged}; {reason}, which --flowprefill-strict refuses")
    return problems


def refused_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Name every variable of an environment that is refused, with the reason."""
    return [
        f"{variable.name}={environment[variable.name]}: {variable.why} (instead: unset it)"
        for variable in REFUSED_VARIABLES
        if environment.get(variable.name, "").strip().lower() not in _FALSE
    ]


def refused_families(config: Any) -> list[str]:
    """Name what keeps a model from being served, as far as its configuration tells.

    Args:
        config: SGLang's ``ModelConfig``.
    """
    facts = {
        "an embedding or reward model": not config.is_generation,
        "a multimodal model": bool(config.is_multimodal),
        "an encoder-decoder model": bool(config.is_encoder_decoder),
        "a model with n-gram embeddings": bool(getattr(config, "use_ngram_embedding", False)),
    }
    return [name for name, is_true in facts.items() if is_true]


def require_supported_settings(settings: Any, *, is_strict: bool = False) -> None:
    """Refuse a command line that asks for something unsupported.

    Args:
        settings: SGLang's ``ServerArgs``, as the user wrote it.
        is_strict: As in ``refused_settings``.

    Raises:
        UnsupportedSGLangError: Names every flag at fault.
    """
    problems = refused_settings(settings, is_strict=is_strict) + refused_variables()
    if problems:
        raise UnsupportedSGLangError(
            "FlowPrefill does not support these settings; drop them, or serve without FlowPrefill "
            "(python -m sglang.launch_server):\n  " + "\n  ".join(problems)
        )


def require_supported_scheduler(scheduler: Any, max_chunk_tokens: int) -> None:
    """Refuse a model that only the scheduler process knows to be unsupported.

    Args:
        scheduler: SGLang's, complete.
        max_chunk_tokens: Of a forward pass.

    Raises:
        UnsupportedSGLangError: Says what the model is, or which two settings disagree.
    """
    config = scheduler.model_config
    facts = {
        "a hybrid state-space model": bool(scheduler.is_hybrid_ssm),
        "a model with a hybrid sliding-window cache": bool(scheduler.is_hybrid_swa),
    }
    found = refused_families(config) + [name for name, is_true in facts.items() if is_true]
    if found:
        raise UnsupportedSGLangError(
            f"{config.model_path} is {' and '.join(found)}, which FlowPrefill does not support "
            "yet; serve it with python -m sglang.launch_server"
        )
    if scheduler.enable_overlap or scheduler.chunked_prefill_size is not None:
        raise UnsupportedSGLangError(
            "SGLang's overlap scheduling or chunked prefill is on although FlowPrefill switched it "
            "off: another plugin or a model override changed the settings"
        )
    alignment = getattr(scheduler, "truncation_align_size", None)
    if alignment is not None and alignment > max_chunk_tokens:
        raise UnsupportedSGLangError(
            f"prompts are cut at multiples of {alignment} tokens, and a forward pass takes at most "
            f"{max_chunk_tokens}: give --flowprefill-max-chunk-tokens {alignment} or more"
        )


def _defaults_of(settings: Any) -> dict[str, Any]:
    """Return the defaults of SGLang's record; of what has none, nothing."""
    if isinstance(settings, msgspec.Struct):
        known: Any = msgspec.structs.fields(type(settings))
    else:
        known = fields(settings) if is_dataclass(settings) else ()
    absent = (MISSING, msgspec.NODEFAULT)
    made = {
        spec.name: spec.default_factory()
        for spec in known
        if not any(spec.default_factory is none for none in absent)
    }
    plain = {
        spec.name: spec.default
        for spec in known
        if not any(spec.default is none for none in absent)
    }
    return plain | made
