"""Trace files are read whole, or refused with the place of the fault."""

import gzip

import pytest

from bench.errors import TraceFileError
from bench.workloads.request import PrefixBlock, TraceRequest
from bench.workloads.trace_file import read_trace, write_trace

HEADER = "arrival_s,class,input_tokens,output_tokens"


def test_reads_plain_and_gzipped_files_with_extra_columns(tmp_path):
    """Columns are found by name, and others are ignored, in both kinds of file."""
    text = "idx,arrival_s,class,input_tokens,output_tokens,note\n0,0.5,text,7,2,x\n"
    plain, zipped = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_text(text)
    zipped.write_bytes(gzip.compress(text.encode()))
    assert read_trace(plain) == read_trace(zipped) == [TraceRequest(0.5, "text", 7, 2)]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_written_trace_reads_back(tmp_path, name):
    """What is written is read back, to the microsecond."""
    requests = [TraceRequest(0.0, "text", 7, 2), TraceRequest(1.25, "file", 900, 1)]
    write_trace(tmp_path / name, requests)
    assert read_trace(tmp_path / name) == requests


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("soon,text,7,2", r"t\.csv:3: column 'arrival_s': .*'soon'"),
        ("nan,text,7,2", r"column 'arrival_s': .*'nan'"),
        ("-1,text,7,2", r"column 'arrival_s': .*'-1'"),
        ("0.1,text,7,2", r"t\.csv:3: column 'arrival_s': 0\.1 is earlier"),
        ("1,,7,2", r"column 'class'"),
        ("1,text,0,2", r"column 'input_tokens': .*'0'"),
        ("1,text,7.5,2", r"column 'input_tokens': .*'7\.5'"),
        ("1,text,7,many", r"column 'output_tokens': .*'many'"),
        ("1,text,7", r"column 'output_tokens': .*None"),
    ],
)
def test_bad_row_is_refused_with_its_place(tmp_path, row, complaint):
    """The error names file, line, column and value."""
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n0.5,text,7,2\n{row}\n")
    with pytest.raises(TraceFileError, match=complaint):
        read_trace(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "missing"),
        (b"arrival_s,input_tokens\n", "'class', 'output_tokens' missing"),
        (HEADER.encode() + b"\n", "holds no requests"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_file_that_is_no_trace_is_refused(tmp_path, content, complaint):
    """A wrong header, an empty trace and a binary file each say so."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match=complaint):
        read_trace(path)


def test_missing_and_falsely_gzipped_files_are_refused(tmp_path):
    """File system and compression faults become the same error."""
    fake = tmp_path / "t.csv.gz"
    fake.write_text(HEADER)
    for path in (tmp_path / "none.csv", fake):
        with pytest.raises(TraceFileError, match="cannot be read"):
            read_trace(path)


def test_json_lines_bring_prefixes_and_classes_by_length(tmp_path):
    """Blocks of 512 tokens by identity, the last as long as what is left of the prompt."""
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"arrival_s": 0, "input_tokens": 1000, "output_tokens": 5, "hash_ids": [0, 7]}\n'
        '{"arrival_s": 1.5, "input_tokens": 5000, "output_tokens": 5, "class": "chat"}\n'
    )
    first, second = read_trace(path)
    assert (first.slo_class, second.slo_class) == ("under-4k", "chat")
    assert first.prefix == (PrefixBlock(0, 512), PrefixBlock(7, 488))
    assert second.prefix == ()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("7", r"t\.jsonl:1: not a JSON object"),
        ("{", r"t\.jsonl:1: not a JSON object"),
        ('{"arrival_s": 0, "output_tokens": 5}', "column 'class'|column 'input_tokens'"),
        (
            '{"arrival_s": 0, "input_tokens": 9, "output_tokens": 5, "hash_ids": ["x"]}',
            "column 'hash_ids'",
        ),
    ],
)
def test_a_bad_json_line_is_refused_with_its_place(tmp_path, line, complaint):
    """Line, column and value, as for CSV."""
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TraceFileError, match=complaint):
        read_trace(path)
