"""How a run's model answers held-out questions, while it learns and at the end."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dl_techniques.datasets.samples import with_parts
from dl_techniques.evaluation.question_answering import (
    AnsweredQuestion,
    answer_questions,
    message_text,
    sample_questions,
    share_correct,
)
from dl_techniques.preprocessing.images import load_image
from dl_techniques.training.processes import (
    gather_json,
    is_main_process,
    process_count,
    process_index,
)
from dl_techniques.training.watching import Evaluation
from dl_techniques.visualization.contact_sheet import contact_sheet

_SHOWN = 20


def usable(processor, samples: list) -> list:
    """Return the samples that can be asked, without bad parts; too many of these are an error."""
    if not samples:
        return []
    bad = processor.create_dataset(samples, shuffle=False).report.items
    names = {item.sample_id for item in bad}
    left = (with_parts(sample, lambda part: part["id"] not in names) for sample in samples)
    return [sample for sample in left if sample is not None]


class PeriodicEvaluation:
    """Asks the same few held-out questions again and again: exact match and a picture.

    Args:
        processor: The model's.
        held_out: Samples.
        questions: About how many of their questions.
        folder: Gets `samples/step_000500.png`.
    """

    def __init__(self, processor, held_out: list, questions: int, folder: Path):
        count = max(1, questions // max(1, _questions(held_out[:1])))
        self._samples = held_out[:count]
        self._longest = longest_answer(processor, self._samples)
        self._folder = folder / "samples"

    def __call__(self, step: int, model) -> Evaluation:
        """Return the share of right answers, and the questions with the answers as a picture."""
        answered = _answered(model, self._samples, self._longest)
        share = share_correct(answered)["all"][0]
        if not is_main_process():
            return Evaluation({"exact_match": share}, score=share)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{step:06d}.png"
        contact_sheet(answered[:_SHOWN], path)
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        return Evaluation({"exact_match": share}, {"samples": pixels}, share)


def final_evaluation(model, held_out: list, folder: Path) -> dict:
    """Score all held-out questions, with and without pictures; write what is to be looked at.

    Returns:
        Kind of question -> `exact_match`, `blank_images` (with grey pictures), `questions`; it is
        also in `results.json`.
    """
    longest = longest_answer(model.processor, held_out)
    seen, blank = (
        _answered(model, held_out, longest, blank_images) for blank_images in (False, True)
    )
    scores, blind = share_correct(seen), share_correct(blank)
    results = {
        kind: {"exact_match": score, "blank_images": blind[kind][0], "questions": count}
        for kind, (score, count) in scores.items()
    }
    if not is_main_process():
        return results
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    rows = [
        f"{kind:12s} {r['exact_match']:8.1%} {r['blank_images']:8.1%} {r['questions']:7d}"
        for kind, r in results.items()
    ]
    print(f"{'held out':12s} {'exact':>8s} {'blank':>8s} {'n':>7s}", *rows, sep="\n")
    shown = seen[:: max(1, len(seen) // _SHOWN)][:_SHOWN]
    contact_sheet(shown, folder / "contact_sheet.png")
    (folder / "pictures").mkdir(exist_ok=True)
    for i, item in enumerate(shown):
        if not item.images:
            continue
        load_image(item.images[0]).save(folder / "pictures" / f"{i:02d}.png")
    return results


def _answered(model, samples, longest, blank_images=False) -> list[AnsweredQuestion]:
    """Ask all questions; each of several processes asks those of its samples."""
    own = samples[process_index() :: process_count()]
    found = answer_questions(model, own, 64, longest, blank_images)
    answers = [iter(part) for part in gather_json([item.answer for item in found])]
    return [
        AnsweredQuestion(**question, answer=next(answers[i % len(answers)]))
        for i, sample in enumerate(samples)
        for question in sample_questions(sample)
    ]


def longest_answer(processor, samples: list) -> int:
    """Return how many tokens the longest answer needs, its end token included."""
    return 1 + max(
        len(processor.tokenizer.encode(" " + message_text(message)))
        for sample in samples
        for message in sample["messages"]
        if message["role"] == "assistant"
    )


def _questions(samples: list) -> int:
    return sum(message["role"] == "user" for sample in samples for message in sample["messages"])
