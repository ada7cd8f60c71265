"""What the launcher reads from a command line that SGLang will parse later."""

import pytest

from sglang_flowprefill.launch_server import _asked_for, _num_ranks, _settings_in


@pytest.mark.parametrize(
    ("arguments", "in_file", "expected"),
    [
        ("", "", 1),
        ("--tp 2", "", 2),
        ("--tp-size=4", "", 4),
        ("--dp-size 2", "", 2),
        ("--dp 2 --tp 2", "", 4),
        ("--tp 2", "data-parallel-size: 3", 6),
        ("--tensor-parallel-size 2", "tp-size: 8", 2),
        ("", "tp_size: 8", 8),
        ("", "tensor-parallel-size: 2", 2),
        ("--tp many", "", 1),
    ],
)
def test_the_number_of_ranks_is_what_sglang_will_take(tmp_path, arguments, in_file, expected):
    """By any name, on the command line before the file; nonsense is left to SGLang to refuse."""
    config = tmp_path / "config.yaml"
    config.write_text(in_file)
    asked = _asked_for([*arguments.split(), "--config", str(config)])
    assert _num_ranks(asked, _settings_in(asked.config)) == expected
