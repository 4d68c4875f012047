"""Scores of answers, all between 0 and 1 (CIDEr: 0 to 10, published as 100 times as much).

A function of one prediction returns a float, one of many a float or a dict of floats. No module
here imports a backend.
"""

from dl_techniques.evaluation.metrics.answer_lists import (
    normalise_vqa,
    textvqa_accuracy,
    vqa_accuracy,
)
from dl_techniques.evaluation.metrics.boxes import box_accuracy, box_iou, parse_box
from dl_techniques.evaluation.metrics.captions import (
    bleu,
    caption_tokens,
    cider,
    cider_scores,
    rouge_l,
)
from dl_techniques.evaluation.metrics.choices import (
    choice_accuracy,
    choice_letter,
    likeliest_choice,
    mmmu_accuracy,
    mmmu_choice,
    mmstar_accuracy,
    option_letter,
)
from dl_techniques.evaluation.metrics.likelihood import bits_per_byte, perplexity
from dl_techniques.evaluation.metrics.matching import (
    anls,
    chartqa,
    edit_distance,
    exact_match,
    gqa_accuracy,
    ocrbench_accuracy,
    relaxed_accuracy,
)
from dl_techniques.evaluation.metrics.open_answers import (
    mathvista_accuracy,
    mathvista_answer,
    mmmu_open_accuracy,
)
from dl_techniques.evaluation.metrics.yes_no import (
    mme,
    mme_accuracy,
    mme_answer,
    mme_total,
    pope,
    pope_answer,
    yes_no_accuracy,
    yes_no_answer,
)

__all__ = [
    "anls",
    "bits_per_byte",
    "bleu",
    "box_accuracy",
    "box_iou",
    "caption_tokens",
    "chartqa",
    "choice_accuracy",
    "choice_letter",
    "cider",
    "cider_scores",
    "edit_distance",
    "exact_match",
    "gqa_accuracy",
    "likeliest_choice",
    "mathvista_accuracy",
    "mathvista_answer",
    "mme",
    "mme_accuracy",
    "mme_answer",
    "mme_total",
    "mmmu_accuracy",
    "mmmu_choice",
    "mmmu_open_accuracy",
    "mmstar_accuracy",
    "normalise_vqa",
    "ocrbench_accuracy",
    "option_letter",
    "parse_box",
    "perplexity",
    "pope",
    "pope_answer",
    "relaxed_accuracy",
    "rouge_l",
    "textvqa_accuracy",
    "vqa_accuracy",
    "yes_no_accuracy",
    "yes_no_answer",
]
