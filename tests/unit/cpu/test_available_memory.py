"""How much memory there is inside a container."""

import psutil
import pytest

from sglang_flowprefill.cpu.memory import available_memory_bytes


@pytest.mark.parametrize(
    ("limit_file", "used_file"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, limit_file, used_file):
    """Not what the machine has; of either version of control groups."""
    for name, value in ((limit_file, "5000000\n"), (used_file, "3000000\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    assert available_memory_bytes(tmp_path) == 2_000_000


def test_without_a_limit_the_machine_decides(tmp_path):
    """``max``, or no control group at all."""
    (tmp_path / "memory.max").write_text("max\n")
    found = available_memory_bytes(tmp_path)
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)
