"""The platform entry point puts stand-ins exactly where they are needed."""

from collections.abc import Callable
from pathlib import Path

import pytest

ACTIVATE = """
import sys
from sglang_flowprefill.cpu import platform
from sglang_flowprefill.cpu.stand_in import StandIn
{before}
assert platform.activate() is None
names = ("sgl_kernel", "torchvision", "datasets")
print([name for name in names if isinstance(sys.modules.get(name), StandIn)])
"""


@pytest.fixture
def package(tmp_path: Path) -> Callable[[str, str], None]:
    """Write an importable package into ``tmp_path``."""

    def write(name: str, body: str = "") -> None:
        (tmp_path / f"{name}.py").write_text(body)

    return write


def test_missing_packages_are_replaced(run_python):
    """On the CPU engine all three packages get a stand-in when none is installed."""
    code = ACTIVATE.format(before="platform.find_spec = lambda name: None")
    output = run_python(code, SGLANG_USE_CPU_ENGINE="1")
    assert output == "['sgl_kernel', 'torchvision', 'datasets']"


def test_a_package_that_fails_to_import_is_replaced(run_python, package, tmp_path):
    """A CUDA sgl_kernel without libcuda gives way, and its error is kept as the reason."""
    package("sgl_kernel", "raise ImportError('libcuda.so.1: cannot open')")
    package("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    package("datasets")
    code = ACTIVATE.format(before="") + "import sgl_kernel\nsgl_kernel.gelu"
    code += "\ntry: sgl_kernel.gelu()\nexcept NotImplementedError as error: print(error)"
    output = run_python(code, tmp_path, SGLANG_USE_CPU_ENGINE="1")
    assert output.startswith("['sgl_kernel', 'torchvision']\n")
    assert "libcuda.so.1: cannot open" in output


def test_working_packages_are_left_alone(run_python, package, tmp_path):
    """What imports is used; a slow pure-Python package is not even imported to find out."""
    package("sgl_kernel")
    package("torchvision")
    package("datasets", "raise SystemExit('imported')")
    code = ACTIVATE.format(before="") + "import sgl_kernel, torchvision"
    assert run_python(code, tmp_path, SGLANG_USE_CPU_ENGINE="1") == "[]"


@pytest.mark.parametrize("variables", [{}, {"SGLANG_USE_CPU_ENGINE": "0"}])
def test_nothing_happens_without_the_cpu_engine(run_python, variables):
    """Installed on a GPU machine, the entry point looks at nothing."""
    code = ACTIVATE.format(before="platform.find_spec = None")
    assert run_python(code, **variables) == "[]"


def test_activation_is_cheap(run_python):
    """Every SGLang process imports it, so it loads neither torch nor sglang."""
    code = ACTIVATE.format(before="") + "assert not {'torch', 'sglang', 'numpy'} & set(sys.modules)"
    run_python(code)
