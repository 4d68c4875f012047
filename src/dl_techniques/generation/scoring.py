"""Scoring: how likely a model finds given answers."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from dl_techniques.generation.arguments import check_length
from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.generation.prompts import gather_prompts


@dataclass(frozen=True)
class Score:
    """The log-likelihood of an answer.

    Attributes:
        total: The sum over its tokens.
        tokens: float32[n], of each token given all before it.
        greedy: Whether each token is the likeliest: greedy decoding would give the answer.
    """

    total: float
    tokens: np.ndarray
    greedy: bool


def score(model, inputs, answers) -> list[Score]:
    """Return the log-likelihood of one answer per prompt: a method of `VisionLanguageModel`.

    Args:
        model: The model itself.
        inputs: Prompts, as for `generate`.
        answers: For each a text, to which the template's end of an answer is added, or its ids.

    Raises:
        ValueError: if their numbers differ or an answer is empty.
    """
    prompts, engine = gather_prompts(model, inputs), model.generation_engine()
    rows, positions = prompts.rows, prompts.positions
    if not isinstance(answers, list | tuple | np.ndarray) or len(answers) != rows:
        raise ValueError(f"Expected an answer for each of {rows} prompts, got {answers!r:.200}.")
    answers = [_answer_ids(model, answer) for answer in answers]
    longest = max(map(len, answers))
    check_length(model, positions, longest, "answer tokens")
    longest = min(bucket(longest, TOKEN_BUCKET), model.language_decoder.max_positions - positions)
    ids = np.stack([pad_to(answer, longest, 0) for answer in answers])
    pad_id = 1 if model.image_token_id == 0 else 0
    reading = engine.read(prompts.batch(engine, model), longest, pad_id)
    ids = pad_to(ids, reading.mask.shape[0], 0)
    scores, likeliest = engine.programs.score(
        *(reading.logits, ids, reading.cache, reading.mask, np.int32(reading.start)),
        known_ids=engine.known_ids,
    )
    scores, likeliest = ops.convert_to_numpy(scores), ops.convert_to_numpy(likeliest)
    results = []
    for row, best, answer in zip(scores, likeliest, answers, strict=False):
        tokens = np.array(row[: len(answer)], "float32")
        greedy = bool(best[: len(answer)].all())
        results.append(Score(float(tokens.sum(dtype="float64")), tokens, greedy))
    return results


def _answer_ids(model, answer):
    if isinstance(answer, str):
        if model.processor is None:
            raise ValueError("Answers as text need model.processor; give ids, or set it.")
        answer = model.processor.encode_answer(answer)
    ids = np.asarray(answer)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"An answer must be a text or a list of ids, not empty; got {answer!r}.")
    if (ids < 0).any() or (ids >= model.vocab_size).any():
        raise ValueError(f"An answer's ids must lie in [0, vocab_size={model.vocab_size}).")
    return ids.astype("int32")
