"""``doctor --launch``: what becomes of a launch line, by its flags alone."""

import json
from collections import Counter
from pathlib import Path

import pytest

from sglang_flowprefill.__main__ import main
from sglang_flowprefill.adapter.launch_lines import judge_line, lines_of

OURS = Path(__file__).with_name("launch_lines.txt")
PUBLIC = Path(__file__).parents[3] / "shared/reference/launch-lines.jsonl"

VERDICTS = (
    *["accepted"] * 3,
    "taken over",
    *["accepted"] * 3,
    *["taken over"] * 2,
    *["accepted"] * 2,
    *["refused"] * 4,
)
"""Of the lines of ours, in their order."""


def test_lines_in_the_forms_that_people_write_get_their_verdicts():
    """Variables, assignments, continued lines, comments, redirection, containers, records."""
    answers = [judge_line(line) for line in lines_of(OURS.read_text(encoding="utf-8"))]
    found = [(answer.verdict, answer.problem) for answer in answers]
    assert found == [(verdict, "") for verdict in VERDICTS]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python -m sglang.launch_server --model 'm", "unbalanced quotes"),
        ("python -m other.server --port 1", "no launch command of SGLang's"),
        ("", "no launch command of SGLang's"),
        ("{not json", "nor a JSON object"),
        ('{"flags": 3}', "without flags"),
        ("--no-such-flag 3", "it has no such flag"),
        ("--port abc", "'abc' cannot be its value"),
        ("--chunked-prefill-size", "it needs a value"),
        ("--attention-backend made-up", "it does not know 'made-up'"),
        ("--model-path m stray", "it belongs to no flag"),
        ("--enable", "it may mean"),
        ("--flowprefill-policy magic", "choose one of"),
    ],
)
def test_a_malformed_line_is_refused_with_what_is_wrong(line, says):
    """Never a traceback, and nothing that SGLang would refuse passes as accepted."""
    answer = judge_line(line)
    assert answer.verdict == "refused"
    assert says in json.dumps(answer.as_record())


@pytest.mark.parametrize("end", range(0, 400, 7))
def test_a_line_that_is_cut_off_anywhere_gets_an_answer(end):
    """Whatever is left of a command is judged or refused."""
    text = OURS.read_text(encoding="utf-8").replace("#", "'")
    for start in (0, 300, 900):
        assert judge_line(text[start : start + end]).verdict in {
            "accepted",
            "taken over",
            "refused",
        }


def test_a_variable_is_judged_by_the_values_that_are_served():
    """One value of ``--ep-size`` is served, so it may be in the variable; no speculation is."""
    assert judge_line("--ep-size ?").verdict == "accepted"
    assert "served with 1" in judge_line("--ep-size $EP").flags["--ep-size"].why
    assert judge_line("--ep-size 2").verdict == "refused"
    assert judge_line("--speculative-algorithm ?").verdict == "refused"


def test_values_of_a_record_are_taken_as_they_are_written():
    """Numbers, switches that are off, and nested values."""
    flags = {"tp-size": 1, "nnodes": 2, "enable-lora": False, "enable-metrics": True, "x": [1]}
    answer = judge_line(json.dumps({"flags": flags}))
    assert answer.flags["--tp-size"].value == "1"
    assert answer.flags["--nnodes"].answer == "refused"
    assert answer.flags.keys() == {"--tp-size", "--nnodes", "--enable-metrics", "--x"} | (
        {"[1]"} & answer.flags.keys()
    )


def test_a_config_file_is_judged_where_it_is_there(tmp_path):
    """Its settings count like flags, which go before it; of a missing one nothing is said."""
    file = tmp_path / "server.yaml"
    file.write_text("chunked-prefill-size: 4096\nenable-lora: false\ntp-size: 2\n")
    answer = judge_line(f"--tp-size 4 --config {file}")
    assert answer.verdict == "taken over"
    assert answer.flags["--tp-size"].value == "4"
    assert judge_line("--config nowhere.yaml").notes


def test_json_has_one_object_a_line_and_the_exit_status_counts_refusals(tmp_path, capsys):
    """All of it in one process; a file that cannot be read is an error of the command line."""
    file = tmp_path / "lines"
    file.write_text("# nothing\n--port 1\n\n--chunked-prefill-size \\\n 8\n--enable-lora\n")
    assert main(["doctor", "--json", "--launch-file", str(file)]) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["verdict"] for record in records] == ["accepted", "taken over", "refused"]
    assert records[1]["flags"]["--chunked-prefill-size"]["answer"] == "taken over"
    assert main(["doctor", "--launch", "--port 1"]) == 0
    assert main(["doctor", "--launch-file", str(tmp_path / "none")]) == 1
    assert "cannot read the file" in capsys.readouterr().err


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public launch lines are not here")
def test_public_launch_lines_are_all_judged(capsys):
    """Prints how many of each source are refused, and why; none has a problem of reading."""
    verdicts, reasons = Counter(), Counter()
    for line in PUBLIC.read_text(encoding="utf-8").splitlines():
        answer = judge_line(line)
        source = json.loads(line)["source"]
        assert not answer.problem
        verdicts[source, answer.verdict] += 1
        reasons.update(
            (source, flag) for flag, found in answer.flags.items() if found.answer == "refused"
        )
    with capsys.disabled():
        for (source, what), count in [*sorted(verdicts.items()), *reasons.most_common()]:
            print(f"\n{source} {what}: {count}", end="")
    assert verdicts["inferencex", "refused"] <= 40
    assert verdicts["cookbook", "refused"] <= 35
