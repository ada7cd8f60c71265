"""Every error that this package raises on purpose.

FlowPrefillError
├── ConfigError              a flag, variable or config file is wrong: stops start-up
├── UnsupportedSGLangError   the installed SGLang, or a feature of it, does not fit: stops start-up
├── SloError                 a request asks for an impossible SLO: HTTP 400, also a ValueError
├── RequestError             a request asks for what is not served: HTTP 400, also a ValueError
├── IllegalTransitionError   a prefill batch was driven through an impossible change: a bug here
├── CursorError              a suspended prefill was misused or found changed: a bug here
├── ForwardError             a forward pass raised: its requests get HTTP 500, serving goes on
├── RankError                a tensor-parallel rank ended, fell silent or is out of step: stops the
│                            server
├── StateUnavailableError    a running server could not be asked how it is: HTTP 503, or a
│                            message of the command that asked
├── ProfileError             measured prefill costs cannot be read: ends the command that wants them
├── PatchError               SGLang cannot be patched, or not back: ends ``patch``, changes nothing
├── PlanError                a deployment to simulate is impossible or badly described: ends
│                            ``simulate``
├── BenchUnavailableError    packages that the bench needs are missing: ends the command
├── StandInCalledError       a GPU kernel was called on the CPU engine (``cpu/stand_in.py``)
└── ModelConversionError     the embedded model could not be made; its kinds are in ``cpu/``
"""

_MAX_QUOTED_CHARS = 64


def quoted(value: object) -> str:
    """Return what an error shows of what somebody sent: its beginning, without control codes."""
    if isinstance(value, str):
        return repr(value[:_MAX_QUOTED_CHARS])
    try:
        return repr(value)[:_MAX_QUOTED_CHARS]
    except ValueError:  # Python does not write integers of more than 4300 digits
        return "a number of thousands of digits"


class FlowPrefillError(Exception):
    """Base of all errors of this package."""


class ConfigError(FlowPrefillError):
    """A setting is malformed.

    Attributes:
        setting: The flag, variable or key at fault.
        value: What was given.
    """

    def __init__(self, setting: str, value: object, problem: str) -> None:
        self.setting = setting
        self.value = value
        super().__init__(f"{setting}: {problem} (got {value!r})")


class UnsupportedSGLangError(FlowPrefillError):
    """The installed SGLang or one of its features cannot run with FlowPrefill."""


class SloError(FlowPrefillError, ValueError):
    """A request's SLO is malformed. SGLang's routes turn a ValueError into HTTP 400.

    Attributes:
        field: The header or body field at fault.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}")


class RequestError(FlowPrefillError, ValueError):
    """A request asks for something that is not served, or cannot be.

    Attributes:
        field: The body field at fault.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}")


class IllegalTransitionError(FlowPrefillError):
    """A prefill batch was asked for a change that its state does not allow."""

    def __init__(self, batch_id: int, state: str, change: str) -> None:
        super().__init__(f"prefill batch {batch_id} cannot {change} while {state}")


class CursorError(FlowPrefillError):
    """An operator cursor was misused, or its inputs changed while it was suspended."""


class RankError(FlowPrefillError):
    """The ranks of a tensor-parallel server can no longer act as one."""


class StateUnavailableError(FlowPrefillError):
    """Nobody answers for the state of a scheduler."""


class ProfileError(FlowPrefillError):
    """The measured prefill costs of a server cannot be read or drawn."""


class PatchError(FlowPrefillError):
    """The installed SGLang is not in a state to be patched or reverted, or a patch is wrong."""


class PlanError(FlowPrefillError):
    """A deployment to simulate is impossible, or what describes it is malformed."""


class BenchUnavailableError(FlowPrefillError):
    """The bench cannot be loaded."""


class ModelConversionError(FlowPrefillError):
    """The embedded model could not be made from the installed package."""


class ForwardError(FlowPrefillError):
    """A forward pass raised.

    Attributes:
        cause: What it raised.
    """

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(f"the prefill failed with {type(cause).__name__}: {cause}")
