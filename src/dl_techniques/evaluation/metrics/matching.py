"""Scores of one answer against the accepted ones: equal, nearly equal, contained."""

import string
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


def exact_match(prediction: str, answers: str | Sequence[str]) -> float:
    """Return 1.0 if the prediction equals an answer, ignoring case and the width of blanks.

    Raises:
        ValueError: if there is no answer.
    """
    return float(canonical(prediction) in {canonical(answer) for answer in answer_list(answers)})


def gqa_accuracy(prediction: str, answers: str | Sequence[str]) -> float:
    """Return 1.0 if the prediction equals an answer, ignoring case, blanks and punctuation.

    Source: the official GQA eval.py compares the texts as they are; published figures of models
    that answer in sentences' case come from this rule (lmms-eval, tasks/gqa).

    Raises:
        ValueError: if there is no answer.
    """
    plain = [text.translate(_NO_PUNCTUATION) for text in (prediction, *answer_list(answers))]
    return exact_match(plain[0], plain[1:])


def relaxed_accuracy(prediction: str, target: str, tolerance: float = 0.05) -> float:
    """Return ChartQA's relaxed accuracy: numbers within 5 %, other texts equal but for case.

    "5%" reads as 0.05. With a target of 0, or where either is no number ("1,000" is none), the
    texts are compared.

    Source: https://arxiv.org/abs/2203.10244, section 5.1; lmms-eval, tasks/chartqa/utils.py.
    """
    given, wanted = _chart_number(prediction), _chart_number(target)
    if given is not None and wanted:
        return float(abs(given - wanted) / abs(wanted) <= tolerance)
    return float(prediction.lower() == target.lower())


def chartqa(
    predictions: Sequence[str], targets: Sequence[str], kinds: Sequence[str]
) -> dict[str, float]:
    """Return ChartQA's mean relaxed accuracy: `human`, `augmented` and `overall`.

    Args:
        predictions: The model's answers.
        targets: The right answers.
        kinds: "human" or "augmented" for each, also with "_test" behind it.

    Raises:
        ValueError: for an unknown kind, no question, or lists of different lengths.
    """
    same_length(predictions, targets, kinds)
    scores: dict[str, list[float]] = {"human": [], "augmented": [], "overall": []}
    for prediction, target, kind in zip(predictions, targets, kinds, strict=True):
        kind = kind.removesuffix("_test")
        if kind not in ("human", "augmented"):
            raise ValueError(f"A question of ChartQA is 'human' or 'augmented', not {kind!r}.")
        score = relaxed_accuracy(prediction, target)
        scores[kind].append(score)
        scores["overall"].append(score)
    return {kind: sum(group) / len(group) for kind, group in scores.items() if group}


def anls(prediction: str, answers: str | Sequence[str], threshold: float = 0.5) -> float:
    """Return 1 - the smallest normalised edit distance to an answer, 0 from the threshold on.

    Case and the width of blanks do not count; a distance is divided by the longer length.

    Source: https://arxiv.org/abs/1905.13648, section 4: a distance *of* the threshold scores 0
    (lmms-eval gives 0.5 there).

    Raises:
        ValueError: if there is no answer.
    """
    given = canonical(prediction)
    distances = []
    for answer in map(canonical, answer_list(answers)):
        longest = max(len(given), len(answer))
        distances.append(edit_distance(given, answer) / longest if longest else 0.0)
    nearest = min(distances)
    return 1.0 - nearest if nearest < threshold else 0.0


def ocrbench_accuracy(
    prediction: str, answers: str | Sequence[str], handwritten_formula: bool = False
) -> float:
    """Return 1.0 if the prediction contains an answer.

    Ignores case, line breaks and the full-width forms of ASCII; of handwritten formulas
    (`dataset` "HME100k") ignores all blanks and line breaks, but not case.

    Source: Yuliang-Liu/MultimodalOCR, OCRBench's example.py; lmms-eval, tasks/ocrbench/utils.py.

    Raises:
        ValueError: if there is no answer.
    """

    def plain(text):
        text = text.strip().replace("\n", " ")
        if handwritten_formula:
            return text.replace(" ", "")
        return text.translate(_FULL_WIDTH).lower().strip()

    return float(any(plain(answer) in plain(prediction) for answer in answer_list(answers)))


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            step = min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
            diagonal, row[j] = row[j], step
    return row[-1]


def canonical(text: str) -> str:
    """Return a text in lower case, with single blanks and none at its ends."""
    return " ".join(text.lower().split())


def answer_list(answers: str | Sequence[str]) -> list[str]:
    """Return one or several answers as a list.

    Raises:
        ValueError: if there is none.
    """
    answers = [answers] if isinstance(answers, str) else list(answers)
    if not answers:
        raise ValueError("A score needs at least one accepted answer, got none.")
    return answers


def same_length(*lists: Sequence) -> None:
    """Check that lists belong together.

    Raises:
        ValueError: if they are empty or their lengths differ.
    """
    lengths = [len(each) for each in lists]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"Expected lists of one length, at least 1, got lengths {lengths}.")


def _chart_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
