"""Rules that give an SLO class to requests that name none.

A rule holds for a request if all of its conditions do; the first that holds, in file order, gives
its class. What a rule asks for becomes known at two places: headers and model where HTTP is spoken,
the length of the prompt only after tokenizing. Hence two questions per rule instead of one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MatchRule:
    """One entry of a class's ``match`` list.

    Attributes:
        class_name: The class that it gives.
        headers: Values that these headers must have, by lower-case name.
        model: What the body's ``model`` must be; None for any, or none at all.
        min_prompt_tokens: The prompt must have at least this many tokens.
        max_prompt_tokens: And at most this many; None for any number.
    """

    class_name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    min_prompt_tokens: int = 1
    max_prompt_tokens: int | None = None

    @property
    def asks_for_length(self) -> bool:
        """False if prompts of all lengths match."""
        return self.min_prompt_tokens > 1 or self.max_prompt_tokens is not None

    def holds_at_the_door(self, headers: Mapping[str, str], model: str | None) -> bool:
        """Tell whether headers and model are those that this rule asks for."""
        return self.model in (None, model) and all(
            headers.get(name) == value for name, value in self.headers.items()
        )

    def holds_for_length(self, num_prompt_tokens: int | None) -> bool:
        """Tell whether a prompt is as long as this rule asks for; unknown lengths are not."""
        if not self.asks_for_length:
            return True
        if num_prompt_tokens is None or num_prompt_tokens < self.min_prompt_tokens:
            return False
        return self.max_prompt_tokens is None or num_prompt_tokens <= self.max_prompt_tokens


def unreachable_rules(rules: Sequence[MatchRule]) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield every rule that can never match, with the earlier ones that take all its requests.

    Exact: there are infinitely many header values and models, so an earlier rule takes something
    of a later one only if it asks for no header or model beyond those of the later one. What is
    left is whether the lengths of these earlier rules together cover the later one's.
    """
    for index, rule in enumerate(rules):
        earlier = [i for i in range(index) if _is_implied(rules[i], rule)]
        if covering := _covering(earlier, rules, rule):
            yield index, covering


def _is_implied(earlier: MatchRule, later: MatchRule) -> bool:
    return earlier.holds_at_the_door(later.headers, later.model)


def _covering(
    candidates: Sequence[int], rules: Sequence[MatchRule], target: MatchRule
) -> Sequence[int]:
    """Return candidates that together cover every length of the target, or nothing."""

    def longest_first(index: int) -> tuple[int, float]:
        rule = rules[index]
        longest = math.inf if rule.max_prompt_tokens is None else rule.max_prompt_tokens
        return max(rule.min_prompt_tokens, target.min_prompt_tokens), -longest

    num_tokens = target.min_prompt_tokens  # the least length that nobody covers yet
    used = []
    for index in sorted(candidates, key=longest_first):
        rule = rules[index]
        if not rule.holds_for_length(num_tokens):
            continue
        used.append(index)
        if rule.max_prompt_tokens is None:
            return used
        num_tokens = rule.max_prompt_tokens + 1
        if target.max_prompt_tokens is not None and num_tokens > target.max_prompt_tokens:
            return used
    return ()
