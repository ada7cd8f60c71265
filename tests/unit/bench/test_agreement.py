"""When two systems answer alike, and what it means where they do not."""

import math

import pytest
from rich.console import Console

from bench.agreement import AgreementOptions, Answer, partings_of, print_agreement


def answer(tokens, *candidates):
    """Return an answer whose other positions are certain."""
    certain = [{token: 0.0} for token in tokens]
    for position, likely in candidates:
        certain[position] = likely
    return Answer(list(tokens), certain)


def test_equal_answers_do_not_part():
    """Whatever their probabilities are."""
    ours = [answer("abc", (1, {"b": -0.7, "x": -0.7}))]
    assert partings_of(ours, [answer("abc")]) == []


def test_answers_part_at_the_first_difference_by_the_smaller_preference():
    """What follows differs because of it, and one system that sees a tie makes it one."""
    ours = [answer("abc", (1, {"b": -0.6, "x": -0.9}))]
    theirs = [answer("axy", (1, {"x": -0.70, "b": -0.75}))]
    (parting,) = partings_of(ours, theirs)
    assert (parting.prompt, parting.position) == (0, 1)
    assert parting.gap == pytest.approx(0.05)


def test_a_choice_that_the_other_never_considered_is_no_tie():
    """Neither has the other's token among its candidates: the gap is as large as can be."""
    (parting,) = partings_of([answer("ab")], [answer("ax")])
    assert math.isinf(parting.gap)


def test_the_table_tells_ties_from_faults():
    """Both are counted, and the largest gap is shown."""
    pairs = {
        "a, b": partings_of(
            [answer("ab", (1, {"b": -0.7, "x": -0.72})), answer("ab", (1, {"b": -0.1, "x": -2.0}))],
            [answer("ax", (1, {"x": -0.7, "b": -0.75})), answer("ax", (1, {"x": -0.2, "b": -2.0}))],
        )
    }
    console = Console(width=120, record=True)
    print_agreement("title", pairs, AgreementOptions(num_prompts=10), console)
    row = next(line for line in console.export_text().splitlines() if "a, b" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["a, b", "8", "1", "1", "1.800"]
