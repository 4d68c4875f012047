"""Scoring: how likely a model finds given answers."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.generation.prompts import as_conversations, prompt_batch, read_prompt


@dataclass(frozen=True)
class Score:
    """The log-likelihood of an answer.

    Attributes:
        total: The sum over its tokens.
        tokens: float32[n], of each token given all before it.
    """

    total: float
    tokens: np.ndarray


def score(model, inputs, answers) -> list[Score]:
    """See `VisionLanguageModel.score`."""
    conversations = as_conversations(inputs)
    engine = model.generation_engine()
    if conversations is None:
        batch = dict(inputs) if isinstance(inputs, dict) else {"text_tokens": np.asarray(inputs)}
    else:
        prompts = [read_prompt(model.processor, c) for c in conversations[0]]
        batch = prompt_batch(engine, model, prompts, model.vision_cache)
    rows = len(batch["text_tokens"])
    if isinstance(answers, str) or len(answers) != rows:
        raise ValueError(f"Expected an answer for each of {rows} prompts, got {answers!r:.200}.")
    answers = [_answer_ids(model, answer) for answer in answers]
    longest = bucket(max(map(len, answers)), TOKEN_BUCKET)
    ids = np.stack([pad_to(answer, longest, 0) for answer in answers])
    model.batch_checks.check(batch)
    reading = engine.read(batch, longest, 0)
    ids = pad_to(ids, reading.mask.shape[0], 0)
    scores = engine.programs.score(
        reading.logits, ids, reading.cache, reading.mask, np.int32(reading.start)
    )
    scores = ops.convert_to_numpy(scores)
    results = []
    for row, answer in zip(scores, answers, strict=False):
        tokens = np.array(row[: len(answer)], "float32")
        results.append(Score(float(tokens.sum(dtype="float64")), tokens))
    return results


def _answer_ids(model, answer):
    if isinstance(answer, str):
        if getattr(model, "processor", None) is None:
            raise ValueError("Answers as text need model.processor; give ids, or set it.")
        answer = model.processor.encode_answer(answer)
    ids = np.asarray(answer)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"An answer must be a text or a list of ids, not empty; got {answer!r}.")
    if (ids < 0).any() or (ids >= model.vocab_size).any():
        raise ValueError(f"An answer's ids must lie in [0, vocab_size={model.vocab_size}).")
    return ids.astype("int32")
