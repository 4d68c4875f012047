"""How the answers of a benchmark become figures: the functions of `metrics`, applied to records.

A record is a line of a predictions file: `answer` (raw), `parsed`, `score`, and of the question
`references`, `options` (how many), `category` and `group`. Every figure is a function of sums over
the questions, so that all get their intervals and tests from `intervals`.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dl_techniques.evaluation import metrics
from dl_techniques.evaluation.intervals import Figure, mean_figure, mean_table
from dl_techniques.evaluation.metrics.captions import bleu_counts, bleu_from_counts
from dl_techniques.evaluation.metrics.matching import canonical
from dl_techniques.evaluation.metrics.yes_no import pope_counts, pope_from_counts
from dl_techniques.evaluation.questions import Question

Records = Sequence[Mapping[str, Any]]


def score_table(records: Records) -> np.ndarray:
    """Return float64[N, 2]: the questions' scores, and 1."""
    return mean_table([record["score"] for record in records])


@dataclass(frozen=True)
class Scoring:
    """A metric of a benchmark.

    Attributes:
        score: Answer, question -> 0 to 1.
        parse: Answer, question -> what is understood; None: nothing.
        table: Records -> float64[N, C], what each adds to C totals.
        figures: Name -> figure of the totals; the first is the benchmark's.
        totals: Category -> figures, to figures of groups of categories.
        whole: Those of `figures` that need every question of each group.
        group_size: Record -> how many questions its group has.
    """

    score: Callable[[str, Question], float]
    parse: Callable[[str, Question], str | None] = lambda answer, question: answer.strip()
    table: Callable[[Records], np.ndarray] = score_table
    figures: Mapping[str, Figure] = field(default_factory=lambda: {"accuracy": mean_figure})
    totals: Callable[[Mapping[str, Mapping[str, float]]], dict[str, float]] | None = None
    whole: Collection[str] = ()
    group_size: Callable[[Mapping[str, Any]], float] = lambda record: 1

    def figures_of(self, records: Records) -> dict[str, Figure]:
        """Return the figures that these records allow; the first is the benchmark's."""
        left_out = self.whole if self.cut_groups(records) else ()
        return {name: each for name, each in self.figures.items() if name not in left_out}

    def cut_groups(self, records: Records) -> int:
        """Return how many groups lack questions, as where a limit cuts them."""
        found = Counter(record["group"] for record in records)
        wanted = {record["group"]: self.group_size(record) for record in records}
        return sum(found[group] < size for group, size in wanted.items())


_POPE = ("f1", "accuracy", "precision", "recall", "yes_ratio")


def _pope_figure(name: str) -> Figure:
    return lambda totals: pope_from_counts(totals)[name]


def _pope_table(records: Records) -> np.ndarray:
    return np.array([pope_counts(r["answer"], r["references"][0]) for r in records], "float64")


def _group_table(records: Records) -> np.ndarray:
    """Return float64[N, 4]: score, 1, and at the first question of each group: all right, 1."""
    table = np.zeros((len(records), 4))
    first: dict[str, int] = {}
    for number, record in enumerate(records):
        place = first.setdefault(record["group"], number)
        table[number, :2] = record["score"], 1.0
        table[place, 3] = 1.0
        table[place, 2] = record["score"] if place == number else table[place, 2] * record["score"]
    return table


def _rotations(record: Mapping[str, Any]) -> float:
    """Return how many rotations a question has: each option once in each place."""
    # Files of older versions do not tell: no circle is known to be whole.
    return record.get("options", math.inf)


def _all_right(totals: np.ndarray) -> np.ndarray:
    return totals[..., 2] / totals[..., 3]


def _mme_figure(totals: np.ndarray) -> np.ndarray:
    return (mean_figure(totals) + _all_right(totals)) / 2


def _mme_totals(categories: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    # A part of the subtasks, or of a pair of questions (--limit), has no totals.
    known = {*metrics.yes_no.MME_PERCEPTION, *metrics.yes_no.MME_COGNITION}
    whole = known == set(categories) and all("acc_plus" in part for part in categories.values())
    return metrics.mme_total(categories) if whole else {}


def _caption_table(records: Records) -> np.ndarray:
    """Return float64[N, 13]: CIDEr-D, ROUGE-L, 1, and BLEU's counts.

    CIDEr's document frequencies are those of all pictures, also where some are drawn anew.
    """
    answers, references = zip(*((r["answer"], r["references"]) for r in records), strict=True)
    cider = metrics.cider_scores(answers, references)
    rows = [
        [cider[k], record["score"], 1.0, *bleu_counts(answers[k], references[k])]
        for k, record in enumerate(records)
    ]
    return np.array(rows)


def _caption_figures() -> dict[str, Figure]:
    def bleu(name):
        return lambda totals: bleu_from_counts(totals[..., 3:])[name]

    return {
        "cider": lambda totals: totals[..., 0] / totals[..., 2],
        "rouge_l": lambda totals: totals[..., 1] / totals[..., 2],
        **{name: bleu(name) for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")},
    }


def _mmmu_score(answer: str, question: Question) -> float:
    if not question.options:
        return metrics.mmmu_open_accuracy(answer, question.answers)
    right = question.answers[0]
    return metrics.mmmu_accuracy(answer, right, question.options, seed=question.id)


def _mmmu_parse(answer: str, question: Question) -> str:
    if not question.options:
        return answer.strip()
    return metrics.mmmu_choice(answer, question.options, seed=question.id)


def _mathvista(function: Callable) -> Callable:
    def apply(answer: str, question: Question):
        given = (answer,) if function is metrics.mathvista_answer else (answer, question.answers[0])
        details = question.details
        return function(*given, details["answer_type"], question.options, details["precision"])

    return apply


SCORINGS: dict[str, Scoring] = {
    "exact_match": Scoring(
        lambda answer, question: metrics.exact_match(answer, question.answers),
        lambda answer, question: canonical(answer),
    ),
    "vqa": Scoring(
        lambda answer, question: metrics.vqa_accuracy(answer, question.answers),
        lambda answer, question: metrics.normalise_vqa(answer),
    ),
    "textvqa": Scoring(
        lambda answer, question: metrics.textvqa_accuracy(answer, question.answers),
        lambda answer, question: metrics.normalise_vqa(answer.lower()),
    ),
    "gqa": Scoring(lambda answer, question: metrics.gqa_accuracy(answer, question.answers)),
    "relaxed": Scoring(
        lambda answer, question: max(
            metrics.relaxed_accuracy(answer.strip(), target) for target in question.answers
        )
    ),
    "anls": Scoring(
        lambda answer, question: metrics.anls(answer, question.answers),
        figures={"anls": mean_figure},
    ),
    "yes_no": Scoring(
        lambda answer, question: metrics.yes_no_accuracy(answer, question.answers[0]),
        lambda answer, question: metrics.yes_no_answer(answer),
    ),
    "pope": Scoring(
        lambda answer, question: float(metrics.pope_answer(answer) == question.answers[0]),
        lambda answer, question: metrics.pope_answer(answer),
        _pope_table,
        {name: _pope_figure(name) for name in _POPE},
    ),
    "mme": Scoring(
        lambda answer, question: metrics.mme_accuracy(answer, question.answers[0]),
        lambda answer, question: metrics.mme_answer(answer),
        _group_table,
        {"score": _mme_figure, "acc": mean_figure, "acc_plus": _all_right},
        _mme_totals,
        whole=("score", "acc_plus"),
        group_size=lambda record: 2,
    ),
    "mmstar": Scoring(
        lambda answer, question: metrics.mmstar_accuracy(answer, question.answers[0]),
    ),
    "mmmu": Scoring(_mmmu_score, _mmmu_parse),
    "choice": Scoring(
        lambda answer, question: metrics.choice_accuracy(
            answer, question.answers[0], question.options
        ),
        lambda answer, question: metrics.option_letter(answer, question.options),
    ),
    "circular_choice": Scoring(
        lambda answer, question: metrics.choice_accuracy(
            answer, question.answers[0], question.options
        ),
        lambda answer, question: metrics.option_letter(answer, question.options),
        _group_table,
        {"circular": _all_right, "accuracy": mean_figure},
        whole=("circular",),
        group_size=_rotations,
    ),
    "mathvista": Scoring(
        _mathvista(metrics.mathvista_accuracy), _mathvista(metrics.mathvista_answer)
    ),
    "ocrbench": Scoring(
        lambda answer, question: metrics.ocrbench_accuracy(
            answer, question.answers, question.details["handwritten_formula"]
        )
    ),
    "box": Scoring(
        lambda answer, question: metrics.box_accuracy(answer, question.details["box"]),
        lambda answer, question: str(metrics.parse_box(answer) or "") or None,
    ),
    "captions": Scoring(
        lambda answer, question: metrics.rouge_l(answer, question.answers),
        lambda answer, question: " ".join(metrics.caption_tokens(answer)),
        _caption_table,
        _caption_figures(),
    ),
}
