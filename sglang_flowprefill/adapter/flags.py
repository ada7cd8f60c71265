"""FlowPrefill's settings on SGLang's command line, and the settings it needs SGLang to have.

``--flowprefill-*`` flags are added to SGLang's own parser, so ``--config FILE.yaml`` carries
them too. ``sglang.Engine`` has no parser; there the settings come from ``SGLANG_FLOWPREFILL_*``
variables. Either way they travel to the scheduler process on ``ServerArgs._flowprefill``:
underscore attributes survive its pickling (SGLang 0.5.23, ``ServerArgs.__reduce__``).
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, cast

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.sglang_settings import OUR_POLICIES, Treatment
from sglang_flowprefill.adapter.unsupported import judged_settings, require_supported_settings
from sglang_flowprefill.api.class_file import ServerSlo, load_slo_classes
from sglang_flowprefill.api.classes import Authority, Bounds, SloClasses
from sglang_flowprefill.api.state import STATE_PATH
from sglang_flowprefill.config import VARIABLE_PREFIX, FlowPrefillConfig, flag_of, parse_setting
from sglang_flowprefill.core.admission import AdmissionMode
from sglang_flowprefill.errors import FlowPrefillError, UnsupportedSGLangError
from sglang_flowprefill.observe.state_socket import new_address

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_flowprefill"
_GIVEN_ATTRIBUTE = "_flowprefill_given"
_CLASSES_ATTRIBUTE = "_flowprefill_slo_classes"
_STATE_ADDRESS_ATTRIBUTE = "_flowprefill_state_address"
_DEST_PREFIX = "flowprefill_"
_ATTENTION_ALIAS = "flowprefill_cpu"
_ATTENTION_BACKEND = "torch_native"  # under which ours is registered; attention.py says why
_OFF = {
    "scheduler_recv_interval": 1,
    "num_continuous_decode_steps": 1,
    "enable_prefill_delayer": False,
    "prefill_decode_interval": 0,
    "enable_mixed_chunk": False,
    "schedule_policy": "fcfs",
}
"""Settings that are taken over, as SGLang gets them."""
_given_config: ContextVar[FlowPrefillConfig | None] = ContextVar("given", default=None)
_ATTENTION_SETTINGS = (
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
)


def add_flags(_result: None, parser: argparse.ArgumentParser) -> None:
    """Add the flags (AFTER hook of ``ServerArgs.add_cli_args``)."""
    choices = releases.startup().ATTENTION_BACKEND_CHOICES  # the list that the parser looks up
    if _ATTENTION_ALIAS not in choices:
        choices.append(_ATTENTION_ALIAS)
    group = parser.add_argument_group("FlowPrefill")
    for spec in fields(FlowPrefillConfig):
        default = "" if spec.default is None else f" Default: {spec.default}."
        if isinstance(spec.default, bool):
            group.add_argument(
                flag_of(spec.name),
                dest=_DEST_PREFIX + spec.name,
                action="store_true",
                default=None,
                help=spec.metadata["help"],
            )
        else:
            group.add_argument(
                flag_of(spec.name),
                dest=_DEST_PREFIX + spec.name,
                metavar=spec.name.rpartition("_")[2].upper(),
                help=(spec.metadata["help"] + default).replace("%", "%%"),
            )


def read_flags(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Build ``ServerArgs`` with our settings on it (AROUND hook of ``from_cli_args``)."""
    with _usage_errors():
        given = _given_settings(args)
        config = replace(FlowPrefillConfig.from_environment(), **given)
    before = _given_config.set(config)
    try:
        record = original(cls, args)  # a release that completes its record here asks for ours
    finally:
        _given_config.reset(before)
    setattr(record, _ATTRIBUTE, config)
    setattr(record, _GIVEN_ATTRIBUTE, frozenset(given))
    return record


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    given = {}
    for spec in fields(FlowPrefillConfig):
        value = getattr(args, _DEST_PREFIX + spec.name, None)
        if value is not None:
            is_text = isinstance(value, str)
            given[spec.name] = (
                parse_setting(spec.name, value, flag_of(spec.name)) if is_text else value
            )
    return given


def prepare_settings(record: Any) -> None:
    """Check and complete SGLang's settings (BEFORE hook of what completes them).

    Resolution runs again in every process, on a record that is sealed by then: only the first
    call, in the process that the user started, may change it.
    """
    if getattr(record, "_resolution_finished", False) or getattr(record, "_input_frozen", False):
        return
    with _usage_errors():
        if not hasattr(record, _ATTRIBUTE):
            setattr(record, _ATTRIBUTE, _given_config.get() or FlowPrefillConfig.from_environment())
        _resolve_attention_alias(record)
        require_supported_settings(record, is_strict=config_of(record).strict)
        _take_over(record)
        classes = _read_classes(config_of(record))
        require_answers(can_reject_requests=can_reject(config_of(record), classes))
        setattr(record, _CLASSES_ATTRIBUTE, classes)
    setattr(record, _STATE_ADDRESS_ATTRIBUTE, new_address())
    quiet = record.uvicorn_access_log_exclude_prefixes
    record.uvicorn_access_log_exclude_prefixes = [*quiet, STATE_PATH]  # asked every second
    record.disable_overlap_schedule = True  # a suspended forward cannot sit inside its pipeline
    releases.startup().switch_off_prefill_graphs(record)


def _take_over(record: Any) -> None:
    """Do in our way what some settings are for, say so, and switch SGLang's way off.

    Raises:
        ConfigError: A value taken over is out of range for ours.
    """
    for judged in judged_settings(record):
        if judged.rule.treatment is Treatment.TAKEN_OVER:
            logger.warning(
                "FlowPrefill takes over %s %s: %s", judged.rule.flag, judged.value, judged.rule.why
            )
    chunk_tokens = record.chunked_prefill_size
    if chunk_tokens is not None and chunk_tokens > 0:
        _set_unless_given(record, "max_chunk_tokens", chunk_tokens)
    policy = record.schedule_policy
    if policy in OUR_POLICIES and policy != "fcfs":  # SGLang's default asks for nothing
        _set_unless_given(record, "policy", OUR_POLICIES[policy])
    record.chunked_prefill_size = -1  # chunks are ours: SGLang tracks only one at a time
    for name, value in _OFF.items():
        if hasattr(record, name):
            setattr(record, name, value)


def _set_unless_given(record: Any, name: str, value: Any) -> None:
    is_given = name in getattr(record, _GIVEN_ATTRIBUTE, ())
    if not is_given and VARIABLE_PREFIX + name.upper() not in os.environ:
        setattr(record, _ATTRIBUTE, replace(config_of(record), **{name: value}))


def require_answers(*, can_reject_requests: bool) -> None:
    """Refuse admission rules whose answers this release of SGLang gives us no way to write.

    Raises:
        UnsupportedSGLangError: Says which settings to leave out.
    """
    if can_reject_requests and not releases.startup().HAS_ABORT_HOOK:
        raise UnsupportedSGLangError(
            f"requests cannot be refused with SGLang {releases.installed_version()}: leave out "
            "admission 'reject' (also of SLO classes) and --flowprefill-max-waiting, or use "
            f"SGLang {releases.RELEASES[-1].version}"
        )


def _resolve_attention_alias(record: Any) -> None:
    for name in _ATTENTION_SETTINGS:
        if getattr(record, name) == _ATTENTION_ALIAS:
            setattr(record, name, _ATTENTION_BACKEND)


def _read_classes(config: FlowPrefillConfig) -> SloClasses:
    """Read the class file: once for a server, in the process that the user started.

    Raises:
        ConfigError: The class file is missing or malformed.
    """
    bounds = Bounds(min_ttft_slo_ms=config.min_ttft_slo_ms, min_tpot_slo_ms=config.min_tpot_slo_ms)
    server = ServerSlo(
        config.default_ttft_slo_ms,
        config.default_slo_factor,
        bounds,
        cast("Authority", config.slo_authority),
    )
    return load_slo_classes(config.slo_config, server)


def slo_classes_of(record: Any) -> SloClasses:
    """Return the SLO classes as they arrived with SGLang's settings."""
    classes: SloClasses = getattr(record, _CLASSES_ATTRIBUTE)
    return classes


def can_reject(config: FlowPrefillConfig, classes: SloClasses) -> bool:
    """Tell whether any request may be refused."""
    modes = classes.admission_modes(cast("AdmissionMode", config.admission))
    return "reject" in modes or config.max_waiting is not None


def config_of(record: Any) -> FlowPrefillConfig:
    """Return our settings as they arrived with SGLang's."""
    config: FlowPrefillConfig = getattr(record, _ATTRIBUTE)
    return config


def state_address_of(record: Any) -> str:
    """Return where the scheduler process of a server answers for its state."""
    address: str = getattr(record, _STATE_ADDRESS_ATTRIBUTE)
    return address


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn our errors into a clean exit: a traceback would hide the one line that matters."""
    try:
        yield
    except FlowPrefillError as error:
        raise SystemExit(f"flowprefill: error: {error}") from None
