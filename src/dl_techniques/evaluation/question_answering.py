"""Asks a model every question of some samples and scores its answers by exact match."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.datasets.samples import question_ids
from dl_techniques.evaluation.metrics import exact_match
from dl_techniques.generation.sampling import GREEDY, Sampler
from dl_techniques.preprocessing.chat_template import decode_answer
from dl_techniques.preprocessing.messages import message_parts

PROMPT_BUCKET = 16


@dataclass
class AnsweredQuestion:
    """One question with the model's answer; `images` are as in the sample."""

    id: str
    kind: str
    images: list[Any]
    question: str
    references: list[str]
    answer: str

    @property
    def correct(self) -> bool:
        """Whether the answer equals a reference; see `metrics.exact_match`."""
        return bool(exact_match(self.answer, self.references))


def answer_questions(
    model,
    processor,
    samples: Iterable[dict],
    batch_size: int = 64,
    max_new_tokens: int = 16,
    blank_images: bool = False,
    sampler: Sampler = GREEDY,
    seed: int = 0,
) -> list[AnsweredQuestion]:
    """Ask each user turn alone (no earlier turns).

    Args:
        model: A `VisionLanguageModel`.
        processor: Its `VQADataProcessor`.
        samples: Rows with `images` and `messages` (see `samples.make_sample`), every question with
            its answer.
        batch_size: Questions per batch.
        max_new_tokens: The longest answer, in tokens.
        blank_images: Show blank pictures (0 after normalisation: mid-grey for [-1, 1]) instead:
            what the model answers without seeing.
        sampler: How tokens are chosen.
        seed: Of what is drawn.
    """
    questions = [question for sample in samples for question in sample_questions(sample)]
    stop_ids = processor.template.stop_ids(processor.tokenizer)
    answered = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        inputs = prompt_batch(processor, batch, batch_size, blank_images)
        ids = model.generate(
            inputs,
            max_new_tokens,
            sampler,
            stop_ids=stop_ids,
            pad_token_id=processor.pad_token_id,
            seed=seed + start,
        )
        for question, row in zip(batch, ids, strict=False):
            text = decode_answer(row.tolist(), processor.tokenizer, processor.template)
            answered.append(AnsweredQuestion(**question, answer=text))
    return answered


def prompt_batch(
    processor, questions: list[dict], batch_size: int | None = None, blank_images: bool = False
) -> dict[str, np.ndarray]:
    """Return the model inputs of prompts; rows are repeated up to `batch_size`.

    Args:
        processor: A `VQADataProcessor`.
        questions: Dicts with `question` and `images`.
        batch_size: Rows of the result; default: as many as questions.
        blank_images: Replace pictures by zeros.
    """
    prompts = [
        processor.process(
            {
                "id": q.get("id", "question"),
                "images": q["images"],
                "messages": [{"role": "user", "content": q["question"]}],
            }
        )
        for q in questions
    ]
    prompts += [prompts[-1]] * ((batch_size or len(prompts)) - len(prompts))
    longest = max(len(p["text_tokens"]) for p in prompts)
    length = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    slots = max(len(p["images"]) for p in prompts)
    tokens = np.full((len(prompts), length), processor.pad_token_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    images = np.zeros((len(prompts), slots, *processor.image_processor.image_size, 3), np.float32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt["text_tokens"])] = prompt["text_tokens"]
        mask[row, : len(prompt["text_tokens"])] = True
        if not blank_images:
            images[row, : len(prompt["images"])] = prompt["images"]
    inputs = {"text_tokens": tokens, "attention_mask": mask}
    if slots:
        inputs["images"] = images
        inputs["num_images"] = np.array([len(p["images"]) for p in prompts], np.int32)
    return inputs


def share_correct(answered: list[AnsweredQuestion]) -> dict[str, tuple[float, int]]:
    """Return kind -> (share of correct answers, number of questions); "all" comes first."""
    groups = {"all": answered}
    for item in answered:
        groups.setdefault(item.kind, []).append(item)
    if list(groups) == ["all", "question"]:
        del groups["question"]
    return {k: (sum(a.correct for a in g) / len(g), len(g)) for k, g in groups.items()}


def message_text(message: dict) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    return "".join(value for kind, value in message_parts(message, "a message") if kind == "text")


def sample_questions(sample: dict) -> list[dict]:
    """Return `id`, `kind`, `images`, `question` and `references` of each user turn of a sample."""
    messages = sample["messages"]
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    kinds = sample.get("kinds") or ["question"] * len(users)
    answers = [[message_text(messages[i + 1])] for i in users]
    references = sample.get("references") or answers
    return [
        {
            "id": name,
            "kind": kind,
            "images": sample["images"] or _images(messages[: i + 1]),
            "question": message_text(messages[i]),
            "references": accepted,
        }
        for name, kind, i, accepted in zip(
            question_ids(sample), kinds, users, references, strict=True
        )
    ]


def _images(messages: list[dict]) -> list[Any]:
    parts = [part for message in messages for part in message_parts(message, "a message")]
    return [value for kind, value in parts if kind == "image"]
