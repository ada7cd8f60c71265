"""A stand-in can be imported and used in every way but one: it cannot run."""

from pathlib import Path
from textwrap import dedent

import pytest

from sglang_flowprefill.cpu.stand_in import StandIn, StandInCalledError
from sglang_flowprefill.errors import FlowPrefillError

TRITON_STAND_IN = Path(__file__).parents[3] / "requirements" / "triton-stand-in"


def with_stand_in(name: str, code: str) -> str:
    """Return a script that runs ``code`` where ``name`` is a stand-in."""
    return (
        "from sglang_flowprefill.cpu.stand_in import StandInCalledError, install\n"
        f"install({name!r}, 'libcuda.so.1 is missing')\n" + dedent(code)
    )


def test_everything_below_the_package_can_be_imported(run_python):
    """Names, submodules at any depth and their aliases are all found."""
    run_python(
        with_stand_in(
            "sgl_kernel",
            """
            import sgl_kernel, sgl_kernel.allreduce as allreduce
            from sgl_kernel import silu_and_mul
            from sgl_kernel.quantization.deep.er import gguf
            import importlib.util
            assert importlib.util.find_spec("sgl_kernel") is sgl_kernel.__spec__
            assert sgl_kernel.silu_and_mul is silu_and_mul
            assert sgl_kernel.__version__
            """,
        )
    )


def test_calling_a_kernel_says_which_one_and_why_it_is_missing(run_python):
    """The error names the function and the reason for which the package was replaced."""
    message = run_python(
        with_stand_in(
            "sgl_kernel",
            """
            from sgl_kernel.moe import topk_softmax
            try:
                topk_softmax(1, k=2)
            except StandInCalledError as error:
                print(error)
            """,
        )
    )
    assert "sgl_kernel.moe.topk_softmax was called" in message
    assert "libcuda.so.1 is missing" in message


def test_a_triton_kernel_is_defined_but_not_launched(run_python):
    """All of Triton's decorators give a kernel that names its function when launched."""
    message = run_python(
        with_stand_in(
            "triton",
            """
            import triton, triton.language as tl
            from triton.experimental import gluon

            BLOCK = tl.constexpr(8)
            assert BLOCK.value == 8

            @triton.autotune(configs=[triton.Config({"B": 1}, num_warps=4)], key=["n"])
            @triton.heuristics({"EVEN": lambda args: args["n"] % 2 == 0})
            @triton.jit(do_not_specialize=["n"])
            def scale(x, n, B: tl.constexpr, dtype: tl.dtype | None = None):
                "Scale."

            @triton.jit
            def plain(x): ...

            @gluon.jit
            def blackwell(x): ...

            assert scale.__doc__ == "Scale." and scale.fn.__name__ == "scale"
            for kernel in (scale, plain, blackwell):
                try:
                    kernel[(1,)](0, n=3)
                except StandInCalledError as error:
                    print(error)
            """,
        )
    )
    assert [line.split(" ")[0] for line in message.splitlines()] == [
        "__main__.scale",
        "__main__.plain",
        "__main__.blackwell",
    ]
    assert "triton is a stand-in" in message


def test_triton_arithmetic_on_grids_is_real(run_python):
    """What is computed before a launch has Triton's results."""
    output = run_python(
        with_stand_in(
            "triton",
            """
            from triton import cdiv, next_power_of_2
            print([cdiv(n, 4) for n in (0, 1, 4, 5)], [next_power_of_2(n) for n in (0, 1, 3, 8, 9)])
            """,
        )
    )
    assert output == "[0, 1, 1, 2] [1, 1, 4, 8, 16]"


def test_torchvision_has_one_real_interpolation_enum(run_python):
    """A library indexes a table by it, from whichever module it imported it."""
    run_python(
        with_stand_in(
            "torchvision",
            """
            import torchvision
            from torchvision.transforms import InterpolationMode
            from torchvision.transforms.v2 import functional as v2
            assert InterpolationMode("bicubic") is v2.InterpolationMode.BICUBIC
            assert torchvision.transforms.functional.InterpolationMode is InterpolationMode
            """,
        )
    )


def test_installing_clears_what_a_failed_import_left(run_python):
    """A half-imported real package does not shine through."""
    run_python(
        dedent(
            """
            import sys, types
            sys.modules["sgl_kernel.common_ops"] = types.ModuleType("sgl_kernel.common_ops")
            from sglang_flowprefill.cpu.stand_in import StandIn, install
            install("sgl_kernel", "")
            import sgl_kernel.common_ops
            assert isinstance(sgl_kernel.common_ops, StandIn)
            """
        )
    )


def test_torch_never_finds_the_triton_stand_in(run_python):
    """Whoever asks first, torch believes that there is no Triton; nor are CPU kernels feigned."""
    output = run_python(
        dedent(
            """
            import os, sys, torch
            from torch.utils._triton import has_triton_package
            from sglang_flowprefill.cpu.stand_in import install
            torch_asks_first = has_triton_package()
            has_triton_package.cache_clear()
            sys.modules.pop("triton", None)
            import triton.language
            torch_asks_later = has_triton_package()
            install("sgl_kernel", "")
            import sgl_kernel
            print(
                torch_asks_first, torch_asks_later, os.environ["SGLANG_USE_CPU_ENGINE"],
                hasattr(torch.ops.sgl_kernel, "convert_weight_packed"),
            )
            """
        ),
        TRITON_STAND_IN,
    )
    assert output == "False False 1 False"


def test_the_triton_stand_in_leaves_an_explicit_engine_choice(run_python):
    """The environment's default of the CPU engine gives way to the user's setting."""
    code = """
        import os, sys, types
        sys.modules["torch.utils"] = types.ModuleType("torch.utils")  # without loading torch
        sys.modules["torch"] = types.ModuleType("torch")
        sys.modules["torch.utils"]._triton = types.SimpleNamespace(
            has_triton_package=bool, get_triton_version=bool
        )
        import triton
        print(os.environ["SGLANG_USE_CPU_ENGINE"])
    """
    assert run_python(dedent(code), TRITON_STAND_IN, SGLANG_USE_CPU_ENGINE="0") == "0"


def test_a_stand_in_serves_as_base_class_and_in_type_tests():
    """Subclasses keep their other bases; nothing is an instance; unions accept it."""
    base = StandIn("triton.runtime.KernelInterface")

    class Autotuner(base, dict):
        pass

    assert Autotuner.__mro__ == (Autotuner, dict, object)
    assert not isinstance(3, base)
    assert isinstance(3, (base, int))
    assert not issubclass(int, base)
    assert isinstance(3, base | int)
    assert isinstance(3, int | base)
    assert not isinstance(3, base | None)


def test_a_stand_in_is_not_iterable():
    """Iterating fails at once instead of never ending."""
    with pytest.raises(TypeError):
        iter(StandIn("triton.backends"))
    with pytest.raises(TypeError):
        assert "cpu" in StandIn("triton.backends")


def test_dunder_names_are_not_invented():
    """Introspection sees a plain object, not one that answers every question."""
    assert not hasattr(StandIn("sgl_kernel"), "__wrapped__")
    assert not hasattr(StandIn("sgl_kernel"), "__file__")


def test_the_error_is_ours_and_tells_that_nothing_is_implemented():
    """Callers may catch it as this package's error or as Python's NotImplementedError."""
    assert issubclass(StandInCalledError, FlowPrefillError)
    assert issubclass(StandInCalledError, NotImplementedError)
