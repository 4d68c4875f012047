"""Yes/no questions: how answers are read; POPE and MME."""

import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from dl_techniques.evaluation.metrics.matching import same_length

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
MEANINGS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
POPE_NO = {"No", "not", "no"}


def yes_no_answer(text: str) -> str | None:
    """Return "yes" or "no" if just one of them occurs as a word, else None.

    "True" is a yes and "false" a no, as in NLVR.

    Source: VLMEvalKit, YOrN_Extraction.
    """
    found = {MEANINGS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in MEANINGS}
    return found.pop() if len(found) == 1 else None


def yes_no_accuracy(prediction: str, answer: str) -> float:
    """Return 1.0 if the prediction says what the answer says; see `yes_no_answer`.

    Raises:
        ValueError: if the answer is neither yes nor no.
    """
    wanted = yes_no_answer(answer)
    if wanted is None:
        raise ValueError(f"The answer {answer!r} is neither yes nor no: use exact_match.")
    return float(yes_no_answer(prediction) == wanted)


def pope_answer(text: str) -> str:
    """Return "no" if "No", "no" or "not" is a word of the first sentence, else "yes".

    Source: AoiDragon/POPE, evaluate.py.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if POPE_NO.intersection(words) else "yes"


def pope_counts(prediction: str, answer: str) -> tuple[int, int, int, int]:
    """Return which of (true positive, false positive, true negative, false negative) it is.

    Raises:
        ValueError: if the answer is not "yes" or "no".
    """
    said, wanted = pope_answer(prediction), answer.strip().lower()
    if wanted not in ("yes", "no"):
        raise ValueError(f"An answer of POPE is 'yes' or 'no', not {answer!r}.")
    kinds = (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
    return tuple(int((said, wanted) == kind) for kind in kinds)


def pope_from_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return POPE's figures, each float[...], of counts[..., 4] in the order of `pope_counts`.

    Precision, recall and F1 are 0 where they are undefined. `yes_ratio` is the share of
    predictions that say yes, as in the official code.
    """
    counts = np.asarray(counts, "float64")
    tp, fp, tn, fn = np.moveaxis(counts, -1, 0)
    return {
        "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": _ratio(tp + fp, tp + fp + tn + fn),
    }


def pope(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return `accuracy`, `precision`, `recall`, `f1` and `yes_ratio`; "yes" is the positive.

    Source: AoiDragon/POPE, evaluate.py; https://arxiv.org/abs/2305.10355.

    Args:
        predictions: The model's answers; see `pope_answer`.
        answers: "yes" or "no".

    Raises:
        ValueError: for another answer, no question, or lists of different lengths.
    """
    same_length(predictions, answers)
    counts = np.sum([pope_counts(*pair) for pair in zip(predictions, answers, strict=True)], axis=0)
    return {name: float(value) for name, value in pope_from_counts(counts).items()}


def mme_answer(text: str) -> str | None:
    """Return "yes" or "no" where the first four characters tell; None otherwise.

    Source: BradyFU/Awesome-Multimodal-Large-Language-Models, eval_tool/calculation.py.
    """
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return next((answer for answer in ("yes", "no") if answer in text[:4]), None)


def mme_accuracy(prediction: str, answer: str) -> float:
    """Return 1.0 if the prediction reads as the answer; see `mme_answer`.

    Raises:
        ValueError: if the answer is neither yes nor no.
    """
    wanted = mme_answer(answer)
    if wanted is None:
        raise ValueError(f"An answer of MME is 'yes' or 'no', not {answer!r}.")
    return float(mme_answer(prediction) == wanted)


def mme(
    predictions: Sequence[str], answers: Sequence[str], images: Sequence[Hashable]
) -> dict[str, float]:
    """Return `acc` (of questions) and `acc_plus` (of images, both questions right) of a subtask.

    Source: https://arxiv.org/abs/2306.13394, section 2.2. A subtask's published score is
    100 (acc + acc_plus), at most 200.

    Args:
        predictions: The model's answers.
        answers: "yes" or "no".
        images: What tells the pictures of the subtask apart; each has two questions.

    Raises:
        ValueError: if an image does not have two questions, and as `mme_accuracy`.
    """
    same_length(predictions, answers, images)
    pairs: dict[Hashable, list[float]] = {}
    for prediction, answer, image in zip(predictions, answers, images, strict=True):
        pairs.setdefault(image, []).append(mme_accuracy(prediction, answer))
    wrong = next((image for image, scores in pairs.items() if len(scores) != 2), None)
    if wrong is not None:
        raise ValueError(
            f"MME asks two questions about an image; about {wrong!r} there are {len(pairs[wrong])}."
        )
    scores = np.array(list(pairs.values()))
    return {"acc": float(scores.mean()), "acc_plus": float(scores.prod(axis=1).mean())}


def mme_total(subtasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return `perception` and `cognition`: means of (acc + acc_plus) / 2 over their subtasks.

    Times 2000 and 800 they are the published totals.

    Args:
        subtasks: Name -> what `mme` returns.

    Raises:
        ValueError: for an unknown subtask, or if only a part of a group is there.
    """
    unknown = set(subtasks) - {*MME_PERCEPTION, *MME_COGNITION}
    if unknown:
        raise ValueError(f"MME has no subtasks {sorted(unknown)}.")
    totals = {}
    for name, group in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        missing = [task for task in group if task not in subtasks]
        if missing and len(missing) < len(group):
            raise ValueError(f"The {name} score of MME lacks the subtasks {missing}.")
        if not missing:
            scores = [(subtasks[task]["acc"] + subtasks[task]["acc_plus"]) / 2 for task in group]
            totals[name] = sum(scores) / len(scores)
    return totals


def _ratio(part, whole):
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) != 0)
