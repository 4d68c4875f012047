"""Rewards of answers that can be checked: exact, numeric and multiple-choice; each 0.0 or 1.0."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from dl_techniques.evaluation.metrics import choice_letter, exact_match

TOLERANCE = 0.05  # Of ChartQA's relaxed accuracy, https://arxiv.org/abs/2203.10244.

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)[$€£]?(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
    r"(?P<exponent>e[+-]?\d{1,2})?\s*(?P<percent>%?)\.?",
    re.IGNORECASE,
)
_CHOICE_LINE = re.compile(r"^\s*\(?([A-Z])[).:]\s+\S", re.MULTILINE)


def numeric_reward(answer: str, target: str) -> float:
    """Return 1.0 if |answer - target| / |target| <= 0.05; a target of 0 is to be met exactly.

    "1,000", "$5", "1e3" and "12." are numbers, "5%" is 0.05. An answer with anything besides one
    number is none: otherwise naming many numbers would be rewarded.

    Raises:
        ValueError: if the target is no number.
    """
    wanted, given = parse_number(target), parse_number(answer)
    if wanted is None:
        raise ValueError(f"The target {target!r} is no number: use exact_match.")
    if given is None:
        return 0.0
    # A hair of room: |0.95 - 1| / 1 is a little more than 0.05 in binary.
    return float(abs(given - wanted) <= abs(wanted) * (TOLERANCE + 1e-9))


def multiple_choice_reward(answer: str, target: str) -> float:
    """Return 1.0 if the answer chooses the target's letter: "(B)", "B.", "The answer is B".

    Raises:
        ValueError: if the target names no letter.
    """
    wanted = choice_letter(target)
    if wanted is None:
        raise ValueError(f"The target {target!r} names no letter: use exact_match.")
    return float(choice_letter(answer) == wanted)


def parse_number(text: str) -> float | None:
    """Return the number that a text is, or None."""
    found = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return None
    number = float(found["digits"].replace(",", "") + (found["exponent"] or ""))
    number = -number if found["sign"] == "-" else number
    return number / 100.0 if found["percent"] else number


def reward_for(sample: Mapping[str, Any]) -> Callable[[str], float]:
    """Return the reward of an answer to a question: answer -> 0.0 or 1.0.

    With several accepted answers, the best of their rewards. Each accepted answer is compared as
    the question's `kind` says ("multiple_choice", "numeric" or "exact"), else by what it is: a
    letter of choices that the question lists, a number, or a text.

    Args:
        sample: A dict with `references` (or `answers`, or `answer`), and optionally `kind` and
            `question`.

    Raises:
        ValueError: if there is no accepted answer, or it is not of the sample's kind.
    """
    targets = sample.get("references") or sample.get("answers") or [sample.get("answer")]
    if not all(isinstance(target, str) and target.strip() for target in targets):
        raise ValueError(
            "A reward needs accepted answers as texts, in 'references', 'answers' or 'answer'; "
            f"got {targets!r:.200} of sample {sample.get('id')!r}."
        )
    rewards = [(_kind_of(sample, target), target) for target in targets]
    for reward, target in rewards:
        reward("", target)  # A target that is not of the kind is refused now.
    return lambda answer: max(reward(answer, target) for reward, target in rewards)


def question_reward(question: Mapping[str, Any], answer: str) -> float:
    """Return the reward of an answer to a question; see `reward_for`."""
    return reward_for(question)(answer)


_KINDS = {
    "multiple_choice": multiple_choice_reward,
    "numeric": numeric_reward,
    "exact": exact_match,
}


def _kind_of(sample, target):
    if sample.get("kind") in _KINDS:
        return _KINDS[sample["kind"]]
    if choice_letter(target) in _CHOICE_LINE.findall(sample.get("question") or ""):
        return multiple_choice_reward
    return exact_match if parse_number(target) is None else numeric_reward
