"""All settings, each with its unit, default, help text and validation, in one frozen record.

The adapter builds one ``FlowPrefillConfig`` per process, from command line flags
(``--flowprefill-max-suspended``) or, for ``sglang.Engine``, from variables
(``SGLANG_FLOWPREFILL_MAX_SUSPENDED``). Nothing mutates it afterwards; the leaves of the program
receive plain values.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_args

from sglang_flowprefill.core import POLICIES
from sglang_flowprefill.errors import ConfigError

ADMISSION_MODES = ("off", "reject", "degrade")
GRANULARITIES = ("operator", "half-layer", "layer", "chunk", "off")
SLO_AUTHORITIES = ("caller", "clamped", "rules")
LOG_LEVELS = ("debug", "info")
LOG_FORMATS = ("text", "json")

FLAG_PREFIX = "--flowprefill-"
VARIABLE_PREFIX = "SGLANG_FLOWPREFILL_"
_OTHER_VARIABLES = frozenset({"SGLANG_FLOWPREFILL_CACHE"})  # a folder, not a server's setting


def _setting(help_text: str, *, default: Any, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **metadata})


@dataclass(frozen=True, slots=True)
class FlowPrefillConfig:
    """Settings of one server.

    Raises:
        ConfigError: A value is outside its stated range.
    """

    policy: str = _setting(
        "Order of prefills: "
        + ", ".join(f"{name} ({policy.summary})" for name, policy in POLICIES.items())
        + ".",
        default="s-edf",
        choices=tuple(POLICIES),
    )
    default_ttft_slo_ms: float = _setting(
        "TTFT objective in milliseconds of a request that names neither an SLO nor a class, before "
        "it grows with the prompt.",
        default=1000.0,
        minimum=1.0,
    )
    default_slo_factor: float = _setting(
        "The default objective grows with the prompt: by this many times the predicted time of its "
        "prefill alone (0: it is the same for every prompt).",
        default=2.0,
        minimum=0.0,
    )
    slo_authority: str = _setting(
        "Who chooses a request's objective: caller (whatever it states, within the bounds), "
        "clamped (a class that the rules give it, or one without rules, and nothing tighter than "
        "that class) or rules (what callers state is HTTP 400).",
        default="caller",
        choices=SLO_AUTHORITIES,
    )
    min_ttft_slo_ms: float = _setting(
        "A caller's TTFT objective below this many milliseconds counts as this.",
        default=1.0,
        minimum=1.0,
    )
    min_tpot_slo_ms: float = _setting(
        "A caller's TPOT objective below this many milliseconds counts as this.",
        default=10.0,
        minimum=1.0,
    )
    slo_config: str | None = _setting(
        "YAML file with SLO classes (docs/reference/slo.md describes it).",
        default=None,
    )
    tpot_slo_ms: float = _setting(
        "Objective in milliseconds from one token to the next, of a request that names none: "
        "while prefills run, decode steps run inside them in time for it.",
        default=100.0,
        minimum=1.0,
    )
    max_decode_delay: float = _setting(
        "A due decode step waits, up to this multiple of the TPOT objective, if it would make a "
        "first token late that can still be in time (1: it never waits).",
        default=2.0,
        minimum=1.0,
    )
    admission: str = _setting(
        "What becomes of a request that is predicted, at its arrival, to miss its TTFT objective: "
        "off (nothing), reject (HTTP 429 with Retry-After) or degrade (served after all others). "
        "SLO classes may say otherwise for their own.",
        default="off",
        choices=ADMISSION_MODES,
    )
    max_waiting: int | None = _setting(
        "Refuse requests with HTTP 429 while this many are waiting (default: no bound).",
        default=None,
        minimum=1,
    )
    granularity: str = _setting(
        "Where a running prefill may be suspended: before every operator, after attention and "
        "after the MLP (half-layer), before every layer, between two chunks, or never (off, which "
        "does not chunk either).",
        default="operator",
        choices=GRANULARITIES,
    )
    max_operator_ms: float = _setting(
        "An operator predicted to run longer than this many milliseconds runs in tiles that take "
        "about as long, and may be suspended between two of them (0: operators stay whole).",
        default=10.0,
        minimum=0.0,
    )
    run_ahead: int = _setting(
        "On a GPU, at most this many launched operators are unfinished at any time; an urgent "
        "prefill waits for no more than these. 1 leaves the GPU idle after each operator. No "
        "effect on a CPU.",
        default=3,
        minimum=1,
    )
    doorbell: bool = _setting(
        "On an NVIDIA GPU, a linear layer that would run in tiles runs whole, as a product that "
        "stops within microseconds when an urgent request comes. MLPs then hold their wide "
        "intermediate for all rows. Not with tensor parallelism or quantised weights; not measured "
        "inside SGLang.",
        default=False,
    )
    max_chunk_tokens: int = _setting(
        "A longer prompt is prefilled as several forward passes of at most this many tokens, "
        "which bounds the memory of activations.",
        default=8192,
        minimum=1,
    )
    max_batch_tokens: int | None = _setting(
        "Short prompts are prefilled together up to this many tokens (default: where throughput "
        "saturates, by the measured prefill costs).",
        default=None,
        minimum=1,
    )
    max_suspended: int = _setting(
        "At most this many prefills may be suspended at once.",
        default=16,
        minimum=1,
    )
    suspended_memory_mb: float = _setting(
        "Suspended prefills may hold at most this many megabytes of activations, beside their KV, "
        "which the pool bounds. One that holds more alone may still stand suspended.",
        default=4096.0,
        minimum=1.0,
    )
    max_restarts: int = _setting(
        "An unfinished prefill is dropped for a more urgent request's memory, to start over later, "
        "at most this many times.",
        default=2,
        minimum=0,
    )
    min_preemption_gain_ms: float = _setting(
        "A running prefill with less predicted time left than this is not preempted.",
        default=5.0,
        minimum=0.0,
    )
    preemption_margin_ms: float = _setting(
        "A running prefill is preempted only by a request that would go before it even if it had "
        "arrived, and begun, this many milliseconds earlier.",
        default=5.0,
        minimum=0.0,
    )
    max_preemptions: int = _setting(
        "A prefill is preempted at most this many times; then it runs to its end.",
        default=100,
        minimum=0,
    )
    starvation_factor: float = _setting(
        "A request older than this many times its SLO goes first, whatever its class.",
        default=30.0,
        minimum=1.0,
    )
    strict: bool = _setting(
        "Refuse settings of SGLang that are taken over, and those that were only read, not run "
        "(docs/reference/sglang-settings.md), instead of saying so.",
        default=False,
    )
    profile_cache_dir: str | None = _setting(
        "Folder of measured prefill costs (default: $SGLANG_FLOWPREFILL_CACHE or "
        "~/.cache/sglang-flowprefill).",
        default=None,
    )
    profile_again: bool = _setting(
        "Measure prefill costs at this start, whatever is cached: for a profile that was measured "
        "while the machine was busy.",
        default=False,
    )
    trace: str | None = _setting(
        "Write a timeline of prefills, operators and scheduling rounds to this file, for "
        "ui.perfetto.dev or chrome://tracing.",
        default=None,
    )
    log_level: str = _setting(
        "Level of the log line for each request or prefill that is preempted, resumed, refused or "
        "put last: debug or info. --log-level of SGLang decides what is shown.",
        default="debug",
        choices=LOG_LEVELS,
    )
    log_format: str = _setting(
        "Form of those lines: text or json.",
        default="text",
        choices=LOG_FORMATS,
    )
    prediction_factor: float = _setting(
        "Debug: all predictions of prefill time are this many times the truth.",
        default=1.0,
        minimum=0.001,
    )
    prediction_noise: float = _setting(
        "Debug: each request's prediction is off by a lognormal factor of this standard deviation.",
        default=0.0,
        minimum=0.0,
    )
    check_cursors: bool = _setting(
        "Debug: verify at every resume that nothing changed under a suspended prefill.",
        default=False,
    )
    stress: bool = _setting(
        "Debug: suspend every prefill at every boundary and interleave all of them with decode "
        "steps, whatever the policy says. Slow; results must not change.",
        default=False,
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            _validate(spec.name, getattr(self, spec.name), spec.metadata)
        if self.doorbell and (self.granularity != "operator" or not self.max_operator_ms):
            problem = (
                "needs --flowprefill-granularity operator and --flowprefill-max-operator-ms > 0"
            )
            raise ConfigError(flag_of("doorbell"), self.doorbell, problem)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings from ``SGLANG_FLOWPREFILL_*`` variables.

        Raises:
            ConfigError: A variable names no setting, cannot be read as its setting's type, or is
                out of range.
        """
        given = {}
        for variable, text in environment.items():
            name = _setting_of(variable, text)
            if name is not None:
                given[name] = parse_setting(name, text, variable)
        return cls(**given)


def parse_setting(name: str, text: str, origin: str) -> Any:
    """Convert the text of one setting to its type.

    Args:
        name: Field of ``FlowPrefillConfig``.
        text: What the user wrote.
        origin: Flag or variable, for the error message.

    Raises:
        ConfigError: The text is not of the setting's type.
    """
    kinds = _kinds_of(name)
    try:
        if bool in kinds:
            return {"1": True, "true": True, "0": False, "false": False}[text.strip().lower()]
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except (ValueError, KeyError):
        raise ConfigError(origin, text, _expected(kinds)) from None
    return text


def flag_of(name: str) -> str:
    """Return the command line flag of a setting.

    >>> flag_of("max_suspended")
    '--flowprefill-max-suspended'
    """
    return FLAG_PREFIX + name.replace("_", "-")


def _setting_of(variable: str, text: str) -> str | None:
    """Name the setting of a variable. A misspelt one would otherwise be ignored in silence."""
    if not variable.startswith(VARIABLE_PREFIX) or variable in _OTHER_VARIABLES:
        return None
    for spec in fields(FlowPrefillConfig):
        if variable == VARIABLE_PREFIX + spec.name.upper():
            return spec.name
    raise ConfigError(variable, text, "no such setting")


def _validate(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    kinds = _kinds_of(name)
    if not _is_of(kinds, value):
        raise ConfigError(flag_of(name), value, _expected(kinds))
    if value is None:
        return
    choices, minimum = metadata.get("choices"), metadata.get("minimum")
    if choices is not None and value not in choices:
        raise ConfigError(flag_of(name), value, f"choose one of {', '.join(choices)}")
    if minimum is not None and not minimum <= value < math.inf:
        raise ConfigError(flag_of(name), value, f"must be a finite number of at least {minimum:g}")


def _kinds_of(name: str) -> tuple[type, ...]:
    """Return the types of a setting; the first is the one a user writes."""
    annotation = FlowPrefillConfig.__annotations__[name]
    return get_args(annotation) or (annotation,)


def _is_of(kinds: tuple[type, ...], value: Any) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _expected(kinds: tuple[type, ...]) -> str:
    return f"expected a value of type {kinds[0].__name__}"
