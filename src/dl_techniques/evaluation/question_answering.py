"""Asks a model every question of some samples and scores its answers by exact match."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dl_techniques.datasets.rows import messages_with_images
from dl_techniques.datasets.samples import Sample, question_ids
from dl_techniques.evaluation.asking import generated_answers, without_pictures
from dl_techniques.evaluation.metrics import exact_match
from dl_techniques.generation.sampling import GREEDY, Sampler
from dl_techniques.preprocessing.messages import message_parts


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
    samples: Iterable[Sample],
    batch_size: int = 64,
    max_new_tokens: int = 16,
    blank_images: bool = False,
    sampler: Sampler = GREEDY,
    seed: int = 0,
) -> list[AnsweredQuestion]:
    """Ask each user turn alone (no earlier turns).

    Args:
        model: A `VisionLanguageModel` with its processor.
        samples: Rows with `images` and `messages` (see `samples.make_sample`), every question with
            its answer.
        batch_size: Questions at a time.
        max_new_tokens: The longest answer, in tokens.
        blank_images: Show grey pictures of the same sizes instead: what the model answers without
            seeing.
        sampler: How tokens are chosen.
        seed: Of what is drawn.
    """
    questions = [question for sample in samples for question in sample_questions(sample)]
    answered = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        messages = [question_message(question) for question in batch]
        if blank_images:
            messages = [without_pictures(message) for message in messages]
        answers = generated_answers(model, messages, max_new_tokens, sampler, seed + start)
        answered += [
            AnsweredQuestion(**question, answer=answer)
            for question, answer in zip(batch, answers, strict=True)
        ]
    return answered


def question_message(question: dict[str, Any]) -> dict[str, Any]:
    """Return one of `sample_questions` as a user's message, its pictures in their places."""
    asked = {"role": "user", "content": question["question"]}
    (message,) = messages_with_images({**question, "messages": [asked]})
    return message


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


def sample_questions(sample: Sample) -> list[dict[str, Any]]:
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
