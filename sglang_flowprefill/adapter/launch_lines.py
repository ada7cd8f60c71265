"""Judges launch lines of SGLang by their flags: no model is loaded, none of its files is needed.

A line is read as a shell would, as far as that goes without running anything: what a variable or a
command puts in is not known. A flag set by a variable is judged as served if any value is, and the
answer says which. What only the model's own files tell (its family) is not judged.
"""

import argparse
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sglang_flowprefill.adapter.sglang_settings import (
    REFUSED_VARIABLES,
    RULES,
    Proof,
    Rule,
    Treatment,
    rule_for,
)
from sglang_flowprefill.config import FlowPrefillConfig, flag_of, parse_setting
from sglang_flowprefill.errors import ConfigError

_MODULES = ("sglang.launch_server", "sglang_flowprefill.launch_server")
_EXPECTED = "expected python -m sglang.launch_server, or sglang serve, and flags"
_OPERATORS = ";|&<>"
_SUBSTITUTION = re.compile(r"\$\([^()]*\)|`[^`]*`")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_REDIRECTED = re.compile(r"(?<=\s)\d?>&?\d?")
_NUMBER = re.compile(r"-\d+(\.\d+)?")
_OFF = ("", "0", "false")
_UNKNOWN_VALUE = "?"


class _UnreadableLineError(ValueError):
    """A line is no launch line; the message says why."""


@dataclass(frozen=True, slots=True)
class FlagAnswer:
    """What becomes of one flag of a line.

    Attributes:
        value: As it stands in the line.
        answer: honoured, taken over or refused.
        proof: How that is shown.
        why: The reason or the evidence.
        instead: Of a refusal, what to write to be served.
    """

    value: str
    answer: str
    proof: str
    why: str
    instead: str = ""


@dataclass(slots=True)
class LineAnswer:
    """What becomes of a launch line.

    Attributes:
        line: As given.
        flags: By flag, or variable of the environment.
        problem: Why it could not be read; empty if it could.
        notes: What could not be judged.
    """

    line: str
    flags: dict[str, FlagAnswer] = field(default_factory=dict)
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Return accepted, taken over or refused: the worst of its flags."""
        answers = {answer.answer for answer in self.flags.values()}
        if self.problem or Treatment.REFUSED.value in answers:
            return Treatment.REFUSED.value
        is_taken_over = Treatment.TAKEN_OVER.value in answers
        return Treatment.TAKEN_OVER.value if is_taken_over else "accepted"

    def as_record(self) -> dict[str, Any]:
        """Return plain values, in the documented form."""
        flags = {
            flag: {f.name: getattr(answer, f.name) for f in fields(answer)}
            for flag, answer in self.flags.items()
        }
        record = {"line": self.line, "verdict": self.verdict, "flags": flags}
        if self.problem:
            record["problem"] = self.problem
        return record | ({"notes": self.notes} if self.notes else {})


def lines_of(text: str) -> Iterator[str]:
    """Yield the launch lines of a file: continued ones joined, comments and blank ones left out."""
    for line in re.sub(r"\\[ \t]*\r?\n", " ", text).splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def judge_lines(lines: Iterable[str]) -> Iterator[LineAnswer]:
    """Judge each line."""
    return map(judge_line, lines)


def judge_line(line: str) -> LineAnswer:
    """Say what becomes of one launch line.

    Args:
        line: A command as in a shell, its flags alone, or a JSON object with ``flags`` by name.
    """
    answer = LineAnswer(line)
    try:
        words = _words_of(line)
        variables, arguments = _split_command(words)
    except ValueError as error:
        answer.problem = str(error)
        return answer
    for name, value in variables.items():
        _judge_variable(answer, name, value)
    _judge_arguments(answer, arguments)
    return answer


# ---- reading a line ----


def _words_of(line: str) -> list[str]:
    """Split a line into words; raises ValueError where a shell would wait for more."""
    if line.lstrip().startswith("{"):
        return _words_of_record(line)
    text = re.sub(r"\\[ \t]*\r?\n", " ", line.strip())
    text = re.sub(r"\\$", "", text)  # a continuation of which nothing came
    text = _REDIRECTED.sub(" > ", _SUBSTITUTION.sub("$_", text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError(f"unbalanced quotes: {error}") from None
    comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]


def _words_of_record(line: str) -> list[str]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"neither a command nor a JSON object: {error}") from None
    flags = record.get("flags")
    if not isinstance(flags, dict):
        raise _UnreadableLineError(
            "a JSON object without flags: expected an object under that name"
        )
    words = [_MODULES[0]]
    for name, value in flags.items():
        action = _option(f"--{name}")
        has_value = isinstance(action, argparse.Action) and action.nargs != 0
        if value is False:
            continue
        is_bare = value is None or value is True or value == "#"  # a comment is no value
        text = "" if is_bare else str(value)
        given = [text] if text else [_UNKNOWN_VALUE] if has_value else []
        words += [f"--{name}", *given]
    return ["-m", *words]


def _split_command(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables before a launch command, and the arguments behind it."""
    start = _start_of_arguments(words)
    variables = {}
    for word in words[:start]:
        found = _ASSIGNMENT.fullmatch(word)
        if found:
            variables[found[1]] = found[2]
    arguments = list(words[start:])
    is_end = (i for i, word in enumerate(arguments) if word and not word.strip(_OPERATORS))
    return variables, arguments[: next(is_end, len(arguments))]


def _start_of_arguments(words: Sequence[str]) -> int:
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else ""
        name = word.rpartition("/")[2]
        if word == "-m" and after in _MODULES:
            return index + 2
        if name == "sglang" and after == "serve":
            return index + 2
        if name == "launch_server.py":
            return index + 1
    first = next((t for t in words if not _ASSIGNMENT.fullmatch(t)), "")
    if first.startswith("--"):
        return words.index(first)
    raise ValueError(f"no launch command of SGLang's is in this line; {_EXPECTED}")


# ---- judging its parts ----


def _judge_variable(answer: LineAnswer, name: str, value: str) -> None:
    for refused in REFUSED_VARIABLES:
        if name == refused.name and value.strip().lower() not in _OFF:
            answer.flags[name] = FlagAnswer(
                value, Treatment.REFUSED.value, Proof.READ.value, refused.why, "unset it"
            )


def _judge_arguments(answer: LineAnswer, arguments: Sequence[str]) -> None:
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or word == "--":
            _judge_stray(answer, word)
            continue
        flag, has_equals, text = word.partition("=")
        flag = flag.replace("_", "-")
        action = _option(flag)
        if not isinstance(action, argparse.Action):
            answer.flags[flag] = _wrong(text, action)
            continue
        values = [text] if has_equals else []
        if not has_equals:
            taken = _num_values(action, arguments[position:])
            values = list(arguments[position : position + taken])
            position += taken
        answer.flags[flag] = _judge_flag(flag, action, values)
        if action.dest == "config":
            _judge_file(answer, values)


def _judge_stray(answer: LineAnswer, word: str) -> None:
    """A word that belongs to no flag: SGLang takes none, but for a model after ``sglang serve``."""
    if _is_variable(word):
        answer.notes.append(f"what {word} adds is not judged")
    elif word and not answer.flags and not answer.notes:
        answer.notes.append(f"{word} is taken for the model")
    elif word:
        answer.flags[word] = _wrong("", "it belongs to no flag")


def _judge_file(answer: LineAnswer, values: Sequence[str]) -> None:
    """Judge what a ``--config`` file asks for, if it is here."""
    try:
        parsed = yaml.safe_load(Path(values[0]).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, IndexError):
        answer.notes.append("the file of --config cannot be read: what it asks for is not judged")
        return
    for name, value in (parsed if isinstance(parsed, dict) else {}).items():
        flag = "--" + str(name).replace("_", "-")
        if flag not in answer.flags and value is not False:
            _judge_arguments(answer, [flag] if value is True else [f"{flag}={value}"])


def _judge_flag(flag: str, action: argparse.Action, values: list[str]) -> FlagAnswer:
    text = " ".join(values)
    if action.nargs is None and not values:
        return _wrong(text, "it needs a value")
    if any(map(_is_variable, values)):
        return _of_variable(action.dest, text)
    try:
        value = not flag.startswith("--no-") if action.nargs == 0 else _converted(action, values)
    except ValueError as error:
        return _wrong(text, str(error))
    if action.dest.startswith("flowprefill_"):
        return FlagAnswer(text, Treatment.HONOURED.value, Proof.RUN.value, "a setting of ours")
    rule = rule_for(action.dest, value)
    if rule is None:
        return FlagAnswer(text, Treatment.HONOURED.value, Proof.NONE.value, "")
    return _answer_of(rule, text)


def _of_variable(dest: str, text: str) -> FlagAnswer:
    """Judge a flag whose value is not known."""
    rules = [rule for rule in RULES if rule.field == dest]
    served = next((rule for rule in rules if rule.treatment is not Treatment.REFUSED), None)
    refused = next((rule for rule in rules if rule.treatment is Treatment.REFUSED), None)
    if refused is None:
        return (
            FlagAnswer(text, Treatment.HONOURED.value, Proof.NONE.value, "")
            if served is None
            else _answer_of(served, text)
        )
    if refused.served_value:
        why = f"served with {refused.served_value} in the variable; otherwise refused: "
        return FlagAnswer(
            text, Treatment.HONOURED.value, Proof.READ.value, why + refused.why, refused.instead
        )
    if served is not None:
        why = f"depends on the variable; some values are refused: {refused.why}"
        return FlagAnswer(text, served.treatment.value, Proof.READ.value, why, refused.instead)
    return _answer_of(refused, text)


def _answer_of(rule: Rule, text: str) -> FlagAnswer:
    return FlagAnswer(text, rule.treatment.value, rule.proof.value, rule.why, rule.instead)


def _wrong(text: str, problem: str) -> FlagAnswer:
    return FlagAnswer(text, Treatment.REFUSED.value, Proof.RUN.value, f"SGLang refuses: {problem}")


def _num_values(action: argparse.Action, following: Sequence[str]) -> int:
    """Return how many of the words that follow a flag are its values."""
    num_free = 0
    for word in following:
        is_flag = word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)
        if is_flag or (word and not word.strip(_OPERATORS)):
            break
        num_free += 1
    match action.nargs:
        case None | "?":
            return min(num_free, 1)
        case int() as count:
            return min(num_free, count)
        case _:
            return num_free


def _is_variable(text: str) -> bool:
    return text == _UNKNOWN_VALUE or "$" in text or "{{" in text


def _converted(action: argparse.Action, values: list[str]) -> Any:
    """Return what SGLang's parser would make of a value; raises ValueError if it would not."""
    if action.dest.startswith("flowprefill_"):
        name = action.dest.removeprefix("flowprefill_")
        try:
            FlowPrefillConfig(**{name: parse_setting(name, values[0], flag_of(name))})
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return values[0]
    convert: Any = action.type or str
    try:
        converted = [convert(value) for value in values]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{' '.join(values)!r} cannot be its value ({error})") from None
    for value in converted:
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            raise ValueError(f"it does not know {value!r}; it knows {known}")
    is_one = action.nargs in {None, "?"}
    return (converted[0] if converted else action.const) if is_one else converted


def _option(flag: str) -> argparse.Action | str:
    """Return the option of a flag, also of a shortened one, or what is wrong with it."""
    options = _options()
    if flag in options:
        return options[flag]
    longer = [name for name in options if name.startswith(flag)]
    if len({options[name].dest for name in longer}) == 1:
        return options[longer[0]]
    if longer:
        return f"it may mean {', '.join(sorted(longer)[:5])}"
    return "it has no such flag"


@cache
def _options() -> dict[str, argparse.Action]:
    """Return SGLang's options and ours by flag."""
    from sglang.srt.server_args import ServerArgs  # noqa: PLC0415 (heavy)

    from sglang_flowprefill.adapter.flags import add_flags  # noqa: PLC0415 (loads SGLang)

    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    if "--flowprefill-policy" not in parser._option_string_actions:
        add_flags(None, parser)
    return dict(parser._option_string_actions)
