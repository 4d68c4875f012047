"""The arrays of GRPO: prompts of some questions, and the rows that a policy step takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.datasets.rows import IGNORE_INDEX
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.evaluation.question_answering import question_message, sample_questions
from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.generation.prompts import Prompt, read_prompt


@dataclass(frozen=True)
class Prompts:
    """The prompts of Q questions, of which no image is there twice.

    Attributes:
        ids: Q lists of ids.
        pixels: float32[M, H, W, 3], the tiles of all different images; None without images.
        index: int32[Q, I], which of the M tiles each question has; 0 behind its last.
        counts: int32[Q], how many it has.
    """

    ids: list[list[int]]
    pixels: np.ndarray | None
    index: np.ndarray
    counts: np.ndarray

    def repeated(self, group: int) -> "Prompts":
        """Return each prompt `group` times, one after the other, of the same tiles."""
        ids = [ids for ids in self.ids for _ in range(group)]
        index, counts = (np.repeat(x, group, axis=0) for x in (self.index, self.counts))
        return Prompts(ids, self.pixels, index, counts)


def questions_of(samples: Sequence[dict[str, Any]]) -> list[dict]:
    """Return all questions of some samples; see `sample_questions`.

    Raises:
        ValueError: a malformed sample, or no question.
    """
    samples = [normalize_sample(sample, number) for number, sample in enumerate(samples)]
    questions = [question for sample in samples for question in sample_questions(sample)]
    if not questions:
        raise ValueError("A step needs at least one question, got none.")
    return questions


def read_questions(processor, questions: Sequence[dict]) -> Prompts:
    """Return the prompts of questions; a picture that several share is read once.

    Args:
        processor: A `VQADataProcessor`.
        questions: See `questions_of`.

    Raises:
        ValueError: for an image that cannot be read.
    """
    prompts = [read_prompt(processor, [question_message(question)]) for question in questions]
    places: dict[str, list[int]] = {}
    tiles: list[np.ndarray] = []
    for prompt in prompts:
        for digest, image in zip(prompt.digests, prompt.images, strict=True):
            if digest not in places:
                pixels = processor.preprocess_tiles(image)
                first = sum(map(len, tiles))
                places[digest] = list(range(first, first + len(pixels)))
                tiles.append(pixels)
    of_questions = [_tiles(prompt, places) for prompt in prompts]
    slots = max(map(len, of_questions))
    index = np.zeros((len(prompts), slots), "int32")
    for row, numbers in enumerate(of_questions):
        index[row, : len(numbers)] = numbers
    counts = np.array([len(numbers) for numbers in of_questions], "int32")
    pixels = np.concatenate(tiles).astype("float32") if tiles else None
    return Prompts([prompt.ids for prompt in prompts], pixels, index, counts)


def _tiles(prompt: Prompt, places: dict[str, list[int]]) -> list[int]:
    return [place for digest in prompt.digests for place in places[digest]]


def prompt_inputs(prompts: Prompts, pad_id: int, length: int | None = None) -> dict:
    """Return `text_tokens` int32[R, P] and `attention_mask` bool[R, P], padded on the left."""
    length = length or max(map(len, prompts.ids))
    tokens = np.full((len(prompts.ids), length), pad_id, "int32")
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(prompts.ids):
        tokens[row, length - len(ids) :] = ids
        mask[row, length - len(ids) :] = True
    return {"text_tokens": tokens, "attention_mask": mask}


def answer_mask(ids: np.ndarray, stop_ids) -> np.ndarray:
    """Return bool[R, N]: True up to each row's first stop id, which belongs to the answer."""
    stops = np.isin(ids, list(stop_ids)).astype("int32")
    return np.cumsum(stops, axis=1) - stops == 0


def policy_inputs(model, prompts: Prompts, vision, ids, mask, pad_id: int, group: int) -> dict:
    """Return the inputs of `Policy` for answers, in buckets of shapes.

    Every answer begins in the same column. Rows that fill the bucket up have no answer.

    Args:
        model: A `VisionLanguageModel`.
        prompts: Of R rows, those of a group one after the other.
        vision: What the policy takes for the tiles, float[M, ...]; None without images.
        ids: int32[R, N], the answers.
        mask: bool[R, N], see `answer_mask`.
        pad_id: The id of padding.
        group: G, how many rows belong to a question.

    Returns:
        `text_tokens` int32[R', P + N'], `attention_mask`, `answers` int32[R', N'] (-100 where there
        is no token) and, with images, `vision` [M', ...], `image_index` int32[R', I] and
        `num_images` int32[R'].
    """
    rows, slots = len(prompts.ids), prompts.index.shape[1]
    columns = min(bucket(int(mask.sum(axis=1).max()), TOKEN_BUCKET), ids.shape[1])
    ids, mask = ids[:, :columns], mask[:, :columns]
    prefix = slots * model.tokens_per_image if model.fusion == "prefix" else 0
    room = model.language_decoder.max_positions - columns - prefix
    length = min(bucket(max(map(len, prompts.ids)), TOKEN_BUCKET), room)
    read = prompt_inputs(prompts, pad_id, length)
    inputs = {
        "text_tokens": np.concatenate(
            [read["text_tokens"], np.where(mask, ids, pad_id).astype("int32")], axis=1
        ),
        "attention_mask": np.concatenate([read["attention_mask"], mask], axis=1),
        "answers": np.where(mask, ids, IGNORE_INDEX).astype("int32"),
    }
    if vision is not None:
        inputs |= {"image_index": prompts.index, "num_images": prompts.counts}
    filled = bucket(rows // group) * group
    inputs = {name: fill_rows(x, filled) for name, x in inputs.items()}
    inputs["answers"][rows:] = IGNORE_INDEX
    if vision is not None:
        inputs["vision"] = pad_to(np.asarray(vision, "float32"), bucket(len(vision)), 0)
    return inputs


def fill_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return `rows` rows: those of the array, then the last one again and again."""
    return array[np.minimum(np.arange(rows), len(array) - 1)]


def single_questions(samples: Sequence[dict[str, Any]]) -> list[dict]:
    """Return a sample for each question of some samples, so that batches can be cut of them."""
    return [
        {
            "id": question["id"],
            "images": question["images"],
            "messages": [
                {"role": "user", "content": question["question"]},
                {"role": "assistant", "content": question["references"][0]},
            ],
            "kinds": [question["kind"]],
            "references": [question["references"]],
        }
        for question in questions_of(samples)
    ]
