"""Every name in the documentation exists, and every public name is in the documentation."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest
import sglang
from sglang.srt.server_args import ServerArgs

from bench.__main__ import _parser as bench_parser
from bench.decision_cost import __file__ as decision_cost_file
from bench.gpu.options import add_gpu_arguments
from sglang_flowprefill.__main__ import command_line
from sglang_flowprefill.api import class_file, slo
from sglang_flowprefill.api.body import SLO_KEYS
from sglang_flowprefill.config import VARIABLE_PREFIX, FlowPrefillConfig, flag_of
from tests.documented import ROOT, USER_PAGES, blocks, words

FOREIGN_FLAGS = {
    # pip, uv, pytest, make and git, whose help is not ours to keep
    *("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", "--help"),
    *("--no-signature", "--zero-commit"),
    "--tp",  # of SGLang, which takes shortened flags: --tp-size
    # vLLM's, in the description of a peer
    *("--max-num-batched-tokens", "--max-num-partial-prefills", "--scheduling-policy"),
    # SGLang's benchmark client
    *("--backend", "--dataset-name", "--random-input-len", "--random-output-len", "--num-prompts"),
    *("--request-rate", "--header", "--goodput", "--extra-request-body", "--tokenizer"),
}


def flags_of(parser):
    """Return the flags of a parser and of the commands below it."""
    found = set()
    for action in parser._actions:
        found |= {option for option in action.option_strings if option.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(flags_of, action.choices.values()))
    return found


def known_flags():
    """Return every flag that somebody may give to something of ours."""
    of_sglang, of_gpu_bench = argparse.ArgumentParser(), argparse.ArgumentParser()
    ServerArgs.add_cli_args(of_sglang)
    add_gpu_arguments(of_gpu_bench)
    parsers = (of_sglang, of_gpu_bench, command_line(), bench_parser())
    ours = {flag_of(setting.name) for setting in fields(FlowPrefillConfig)}
    scripts = re.findall(r'"(--[a-z-]+)"', Path(decision_cost_file).read_text(encoding="utf-8"))
    return ours | FOREIGN_FLAGS | set(scripts) | set().union(*map(flags_of, parsers))


def test_every_flag_in_the_documentation_exists():
    """Of our launcher and commands, the bench, and SGLang itself."""
    known = known_flags()
    used = words(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])(?!-?[\w*])")
    assert {flag: pages for flag, pages in used.items() if flag not in known} == {}


def test_every_flag_of_a_command_is_in_its_help_or_page():
    """``doctor``'s flags stand on its page; those of settings are generated."""
    page = (ROOT / "docs/reference/doctor.md").read_text(encoding="utf-8")
    commands = next(a for a in command_line()._actions if a.choices)
    own = flags_of(commands.choices["doctor"]) - {"--help"}
    assert {flag for flag in own if flag not in page} == set()


def test_every_variable_in_the_documentation_exists_and_the_reverse():
    """Ours and SGLang's; each of ours is on a reference page."""
    sources = [*ROOT.glob("sglang_flowprefill/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    ours = set(re.findall(r'"(SGLANG_FLOWPREFILL(?:_[A-Z]+)*)"', text))
    ours_alone = {"SGLANG_API_KEY"}  # of top and doctor; SGLang itself takes a flag
    ours |= {VARIABLE_PREFIX + setting.name.upper() for setting in fields(FlowPrefillConfig)}
    upstream = Path(sglang.__file__).parent.rglob("*.py")
    of_sglang = set()
    used = words(r"\b(SGLANG_[A-Z_]*[A-Z])\b")
    unknown = set(used) - ours - ours_alone
    for path in upstream:
        of_sglang |= {name for name in unknown - of_sglang if name in path.read_text("utf-8")}
    assert {name: used[name] for name in unknown - of_sglang} == {}
    reference = words(
        r"\b(SGLANG_[A-Z_]*[A-Z])\b", [p for p in USER_PAGES if "reference" in p.parts]
    )
    assert ours - set(reference) == set()


def test_every_field_of_a_request_is_documented_and_the_reverse():
    """Headers and body fields of docs/reference/slo.md are those that are read."""
    page = (ROOT / "docs/reference/slo.md").read_text(encoding="utf-8")
    pattern = r"x-(?:[a-z-]+-)?slo-[a-z-]*[a-z]"
    assert set(re.findall(pattern, page)) == set(slo.HEADERS)
    assert set(words(pattern)) <= set(slo.HEADERS)
    assert all(f"`{key}`" in page for key in SLO_KEYS)


def test_every_key_of_the_class_file_is_documented_and_the_reverse():
    """The two tables of docs/reference/slo.md are the keys of a class and of a rule."""
    page = (ROOT / "docs/reference/slo.md").read_text(encoding="utf-8")
    of_class = page.partition("| key of a class |")[2].partition("\n\n")[0]
    of_rule = page.partition("| key | holds for |")[2].partition("\n\n")[0]
    for table, entry in ((of_class, class_file._ClassEntry), (of_rule, class_file._RuleEntry)):
        documented = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
        assert sorted(documented) == sorted(f.encode_name for f in msgspec.structs.fields(entry))


@pytest.mark.parametrize("block", blocks("class file"), ids=str)
def test_class_files_in_the_documentation_are_valid(block, tmp_path):
    """What a page shows as a class file is accepted as one."""
    path = tmp_path / "classes.yaml"
    path.write_text(block.text)
    assert class_file.load_slo_classes(str(path), class_file.ServerSlo(1000.0))


def test_every_command_in_the_documentation_exists():
    """``python -m bench NAME`` and ``python -m sglang_flowprefill NAME`` name commands."""
    for module, parser in (("bench", bench_parser()), ("sglang_flowprefill", command_line())):
        commands = next(action for action in parser._actions if action.choices).choices
        used = words(rf"python3? -m {module} ([a-z][\w-]*)")
        assert {name: pages for name, pages in used.items() if name not in commands} == {}


def test_every_example_of_a_kind_is_found():
    """A marker that no longer stands right before its block would be passed over in silence."""
    text = "".join(page.read_text(encoding="utf-8") for page in USER_PAGES)
    markers = re.findall(r"^<!-- test: ", text, re.MULTILINE)
    assert len(markers) == sum(block.kind is not None for block in blocks()) > 0


def test_ci_of_the_forge_is_ci_of_everybody():
    """The workflow file runs ``.ci/run``, which is ``make test``, and nothing else of ours."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.*)", workflow) == [".ci/run"]
    assert "run: |" not in workflow
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").rstrip().endswith("exec make test")
