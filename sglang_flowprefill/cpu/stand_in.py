"""Stand-ins for GPU packages that SGLang imports but does not use for a text model on the CPU.

SGLang 0.5.23 imports ``sgl_kernel``, ``triton``, ``torchvision`` and ``datasets`` at the top of
modules that every server loads. A stand-in takes such a package's place: whatever is imported
from it exists, nests, and may be decorated with, subclassed, annotated with and asked about in
``isinstance``. Only *running* it fails, with an error that names the kernel.

Invariants:

* No stand-in is ever put in place of a package that imports; deciding that is
  ``cpu/platform.py``'s job, and importing this module changes nothing.
* ``torch.compile`` goes on believing that there is no Triton.
* Nothing is registered under ``torch.ops``, because SGLang recognises an AMX machine with CPU
  kernels by an operator there.
"""

import enum
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import FrameType, ModuleType
from typing import Any, Final, Union

from sglang_flowprefill.errors import FlowPrefillError

# Attributes that are not stand-ins, by full name; filled at the end of this file.
_REAL_VALUES: Final[dict[str, Any]] = {}


class StandInCalledError(FlowPrefillError, NotImplementedError):
    """Something that only exists on a GPU was run on the CPU engine."""


class StandIn(ModuleType):
    """One name of a replaced package: module, function, class or kernel, as its user needs.

    Args:
        name: Full dotted name, as the user of the package would write it.
        root: The replaced top-level package, if ``name`` does not start with it; so for a
            kernel, which is named after the function that was decorated.
    """

    def __init__(self, name: str, root: str = "") -> None:
        super().__init__(name, f"Stand-in for {name}: importable, not callable.")
        self.__dict__["_root"] = root or name.partition(".")[0]

    def __getattr__(self, attribute: str) -> Any:
        name = f"{self.__name__}.{attribute}"
        if name in _REAL_VALUES:
            value = _REAL_VALUES[name]
        elif attribute.startswith("__"):
            # import, inspect and typing draw conclusions from the mere presence of such a name
            raise AttributeError(f"stand-in {self.__name__} has no attribute {attribute!r}")
        else:
            value = StandIn(name, self._root)
        setattr(self, attribute, value)  # the same object every time, like a real module's
        return value

    def __call__(self, *_args: object, **_options: object) -> Any:
        """Fail: this is where a kernel would run.

        Raises:
            StandInCalledError: Always.
        """
        raise StandInCalledError(
            f"{self.__name__} was called, but on this machine {self._root} is a stand-in "
            f"({_finder.reasons.get(self._root, 'CPU engine')}). This model or option needs a "
            "kernel that the CPU engine does not have: choose another model, backend or option."
        )

    def __getitem__(self, _grid_or_type: object) -> "StandIn":
        return self  # kernel[grid], Generic[type]

    # Having __getitem__ alone would make every stand-in an endless iterable.
    __iter__ = None
    __contains__ = None

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()  # a subclass of a stand-in keeps its other bases, or is a plain class

    def __instancecheck__(self, _instance: object) -> bool:
        return False  # nothing can have been made from a stand-in

    def __subclasscheck__(self, _class: type) -> bool:
        return False

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007  # `|` between the two is what is defined here

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __repr__(self) -> str:
        return f"<stand-in for {self.__name__}>"


class _SubmoduleFinder(MetaPathFinder, Loader):
    """Finds any submodule of a replaced package.

    It sits at the end of ``sys.meta_path``: whatever really exists is found first.

    Attributes:
        reasons: For each replaced top-level package, why it was replaced.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  # the import protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        root, dot, _ = fullname.partition(".")
        if dot and root in self.reasons:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass  # attributes are made when they are asked for


_finder: Final = _SubmoduleFinder()


def install(name: str, reason: str) -> None:
    """Make ``import name`` and everything below it give stand-ins, in this process.

    Args:
        name: A top-level package, such as ``sgl_kernel``.
        reason: Why the real one is not used; shown when a stand-in is called.
    """
    for stale in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[stale]  # what a failed import of the real package left behind
    _serve_submodules_of(name, reason)
    sys.modules[name] = module_from_spec(ModuleSpec(name, _finder, is_package=True))


def become_triton(module: ModuleType) -> None:
    """Turn the empty package ``triton`` that is being imported into the stand-in.

    Args:
        module: The package, from its own ``__init__``; changed in place.

    Raises:
        ImportError: It is torch that asks. Torch must find no Triton, or it would generate
            Triton code; SGLang's own import, later, succeeds.
    """
    if _importer(sys._getframe(1)).partition(".")[0] == "torch":
        raise ImportError("this environment holds a stand-in for triton, of no use to torch")
    _serve_submodules_of(module.__name__, "triton-stand-in is installed instead of triton")
    module.__class__ = StandIn
    module.__dict__["_root"] = module.__name__
    _answer_torch_that_there_is_no_triton(module)


def _serve_submodules_of(name: str, reason: str) -> None:
    _finder.reasons[name] = reason
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def _importer(frame: FrameType | None) -> str:
    """Name the module whose ``import`` statement is running ``frame``'s module."""
    imported = frame.f_globals.get("__name__") if frame else None
    while frame:
        name: str = frame.f_globals.get("__name__", "")
        if name != imported and not name.startswith("importlib"):
            return name
        frame = frame.f_back
    return ""


def _answer_torch_that_there_is_no_triton(module: ModuleType) -> None:
    """Let torch ask while Triton is hidden; it remembers the answer for good."""
    from torch.utils import _triton  # noqa: PLC0415  # only processes that import triton pay

    sys.modules[module.__name__] = None  # type: ignore[assignment]  # makes `import` fail
    try:
        _triton.has_triton_package()
        _triton.get_triton_version()
    finally:
        sys.modules[module.__name__] = module


# --- What is computed while SGLang and transformers are imported, and therefore must be real. ---


def _decorate(function: Any) -> Any:
    """Return what ``@triton.jit`` makes of ``function``: a kernel that cannot be launched."""
    if isinstance(function, (StandIn, type)):
        return function
    kernel = StandIn(f"{function.__module__}.{function.__qualname__}", root="triton")
    kernel.__doc__ = function.__doc__
    kernel.__dict__["fn"] = function
    return kernel


def _decorator(*arguments: Any, **options: Any) -> Any:
    """Serve ``@jit``, ``@jit(...)``, ``@autotune(...)`` and ``@heuristics(...)`` alike."""
    if len(arguments) == 1 and not options and callable(arguments[0]):
        return _decorate(arguments[0])
    return _decorate


def _cdiv(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 1 else 1


class _Constexpr:
    """``triton.language.constexpr``: wraps a compile-time constant."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Config:
    """``triton.Config``: one candidate of an autotuner that never runs."""

    def __init__(self, kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        self.kwargs = kwargs or {}
        self.__dict__.update(options)


class _InterpolationMode(enum.Enum):
    """``torchvision``'s enum; transformers builds tables from its members on import."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


_REAL_VALUES.update(
    {
        # The version whose interface is imitated; "+standin" keeps bug reports honest.
        "sgl_kernel.__version__": "0+standin",
        "triton.__version__": "3.7.0+standin",
        "torchvision.__version__": "0.28.0+standin",
        "datasets.__version__": "4.0.0+standin",
        "triton.jit": _decorator,
        "triton.autotune": _decorator,
        "triton.heuristics": _decorator,
        "triton.constexpr_function": _decorator,
        "triton.runtime.jit.constexpr_function": _decorator,
        "triton.experimental.gluon.jit": _decorator,
        "triton.language.core._aggregate": _decorator,
        "triton.language.constexpr": _Constexpr,
        "triton.experimental.gluon.language.constexpr": _Constexpr,
        "triton.Config": _Config,
        "triton.cdiv": _cdiv,
        "triton.next_power_of_2": _next_power_of_2,
        # Nothing is ever loaded, so SGLang must not try to watch the loading.
        "triton.knobs.runtime.kernel_load_start_hook": None,
        # torch.compile puts this into its cache keys whenever `import triton` succeeds.
        "triton.runtime.cache.triton_key": lambda: "stand-in",
        "torchvision.transforms.InterpolationMode": _InterpolationMode,
        "torchvision.transforms.functional.InterpolationMode": _InterpolationMode,
        "torchvision.transforms.v2.InterpolationMode": _InterpolationMode,
        "torchvision.transforms.v2.functional.InterpolationMode": _InterpolationMode,
    }
)
