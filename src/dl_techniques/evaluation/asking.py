"""Questions to a model, and its answers: generated, or the likeliest of the options."""

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from dl_techniques.evaluation.metrics import likeliest_choice
from dl_techniques.evaluation.metrics.choices import letters_of
from dl_techniques.evaluation.questions import Question
from dl_techniques.generation.sampling import GREEDY, Sampler
from dl_techniques.preprocessing.images import load_image

GREY = (127, 127, 127)
_MARK = re.compile(r"<image \d>")


def prompt_message(question: Question, prompt: str) -> dict[str, Any]:
    """Return a question as a user's message, the pictures before the text.

    Where the text marks all of them ("<image 1>", in MMMU), they stand there instead.

    Args:
        question: Its pictures are shown.
        prompt: What is asked, as text.
    """
    images = [{"type": "image", "image": source} for source in question.images]
    texts = _MARK.split(prompt)
    if len(texts) != len(images) + 1:
        return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}
    parts = [{"type": "text", "text": text} for text in texts]
    between = [part for pair in zip(parts, images, strict=False) for part in pair]
    content = [part for part in (*between, parts[-1]) if part.get("text") != ""]
    return {"role": "user", "content": content}


def without_pictures(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message, its content a list of parts, with grey pictures of the same sizes."""
    parts = [
        {**part, "image": _blank(part["image"])} if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def generated_answers(
    model,
    messages: Sequence[dict],
    max_new_tokens: int,
    sampler: Sampler = GREEDY,
    seed: int = 0,
) -> list[str]:
    """Return a model's answers, one to each message, without blanks around them.

    Args:
        model: A `VisionLanguageModel` with its processor.
        messages: See `prompt_message`.
        max_new_tokens: The longest answer.
        sampler: How tokens are chosen.
        seed: Of what is drawn; see `generate`.
    """
    conversations = [[message] for message in messages]
    answers = model.generate(conversations, max_new_tokens, sampler, seed=seed)
    return [answer.strip() for answer in answers]


def likeliest_letters(
    model, messages: Sequence[dict], options: Sequence[Sequence[str]]
) -> list[str]:
    """Return for each message the letter of its options that the model finds likeliest.

    Args:
        model: A `VisionLanguageModel` with its processor.
        messages: See `prompt_message`.
        options: The texts of A, B, ... of each.
    """
    letters = [letters_of(each) for each in options]
    prompts = [[m] for m, each in zip(messages, letters, strict=True) for _ in each]
    scores = model.score(prompts, [letter for each in letters for letter in each])
    totals, chosen = iter(score.total for score in scores), []
    for each in letters:
        chosen.append(each[likeliest_choice([next(totals) for _ in each])])
    return chosen


def _blank(image: Any) -> Image.Image:
    return Image.new("RGB", load_image(image).size, GREY)
