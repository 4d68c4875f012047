"""Beam search: the likeliest continuation among several kept at once."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from dl_techniques.generation.engine import Engine


@dataclass(frozen=True)
class BeamSearch:
    """Settings of a beam search.

    Attributes:
        num_beams: Continuations that are kept for each row.
        length_penalty: A finished continuation's log-probability is divided by its length (its
            stop id included) to this power; above 1 favours long answers.

    Raises:
        ValueError: if `num_beams` is below 1.

    Reference: https://arxiv.org/abs/1609.08144.
    """

    num_beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self):
        if self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be at least 1.")


def beam_search(
    engine: Engine, inputs: dict, max_new_tokens: int, search: BeamSearch, stop_ids, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return int32[B, N] ids and float32[B, N] log-probabilities of each row's best continuation.

    A row is done when no continuation still open can beat the best finished one.
    """
    beams, rows = search.num_beams, len(inputs["text_tokens"])
    reading = engine.read(inputs, max_new_tokens, pad_id)
    state = _State(reading, rows, beams, max_new_tokens, pad_id)
    logits = ops.repeat(reading.logits, beams, axis=0)
    for i in range(max_new_tokens):
        origin, tokens = state.extend(_log_probabilities(engine, logits), i, search, stop_ids)
        if i + 1 == max_new_tokens or state.done():
            break
        logits = state.feed(engine, origin, tokens, i)
    ids, logprobs = state.best(search)
    return ids[:rows], logprobs[:rows]


def _log_probabilities(engine, logits):
    logits = np.array(keras.ops.convert_to_numpy(logits), "float64")
    model = engine.model
    top = logits.max(axis=-1, keepdims=True)
    total = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    logprobs = logits - total
    logprobs[:, list(model.image_mark_ids)] = -np.inf
    if engine.known_ids is not None:
        logprobs[:, engine.known_ids :] = -np.inf
    return logprobs


class _State:
    """Open continuations of every row, and the best finished one."""

    def __init__(self, reading, real_rows, beams, length, pad_id):
        rows = len(reading.inputs["text_tokens"])
        self.rows, self.beams, self.pad_id = rows, beams, pad_id
        self.cache = [tuple(ops.repeat(x, beams, axis=0) for x in pair) for pair in reading.cache]
        self.mask = ops.repeat(reading.mask, beams, axis=0)
        self.start = reading.start
        self.ids = np.full((rows, beams, length), pad_id, "int32")
        self.logprobs = np.zeros((rows, beams, length))
        # At first all continuations of a row are the same: only one of them counts.
        self.scores = np.full((rows, beams), -np.inf)
        self.scores[:, 0] = 0.0
        self.finished = [(-np.inf, self.ids[0, 0], self.logprobs[0, 0])] * rows
        self.length = 0
        self.row_done = np.arange(rows) >= real_rows  # The rest fills the bucket.

    def extend(self, logprobs, i, search, stop_ids):
        """Keep each row's best open continuations; return int[B * beams] origins and ids."""
        vocab = logprobs.shape[-1]
        new = logprobs.reshape(self.rows, self.beams, vocab)
        totals = self.scores[:, :, None] + new
        origin = np.zeros((self.rows, self.beams), int)
        tokens = np.full((self.rows, self.beams), self.pad_id)
        ids, kept_logprobs = self.ids.copy(), self.logprobs.copy()
        scores = np.full_like(self.scores, -np.inf)
        self.length = i + 1
        for row in range(self.rows):
            if self.row_done[row]:
                continue
            flat = totals[row].ravel()
            # Enough candidates that as many open ones remain if all stop ids are among them.
            count = min(flat.size, self.beams * (1 + len(stop_ids)))
            order = np.argpartition(-flat, count - 1)[:count]
            open_beams = 0
            for candidate in order[np.argsort(-flat[order], kind="stable")]:
                score = flat[candidate]
                if score == -np.inf or open_beams == self.beams:
                    break
                beam, token = divmod(int(candidate), vocab)
                line = self.ids[row, beam].copy(), self.logprobs[row, beam].copy()
                line[0][i], line[1][i] = token, new[row, beam, token]
                if token in stop_ids:
                    self._finish(row, score, line, search)
                    continue
                origin[row, open_beams], tokens[row, open_beams] = beam, token
                ids[row, open_beams], kept_logprobs[row, open_beams] = line
                scores[row, open_beams] = score
                open_beams += 1
            self.scores[row] = scores[row]
            best_open = scores[row].max()
            longest = self.ids.shape[2] if search.length_penalty > 0 else self.length
            bound = best_open / longest**search.length_penalty
            best = self.finished[row][0]
            # A single beam is greedy: it ends with its stop id, whatever could follow others.
            self.row_done[row] = best >= bound or (self.beams == 1 and best > -np.inf)
        self.ids, self.logprobs = ids, kept_logprobs
        origin += np.arange(self.rows)[:, None] * self.beams
        return origin.ravel(), tokens.ravel()

    def done(self) -> bool:
        return bool(self.row_done.all())

    def feed(self, engine, origin, tokens, i):
        """Return the logits after the tokens just chosen, the i-th of every continuation."""
        index = np.asarray(origin, "int32")
        cache = [tuple(ops.take(x, index, axis=0) for x in pair) for pair in self.cache]
        logits, self.cache = engine.programs.advance(
            np.asarray(tokens, "int32"), cache, self.mask, np.int32(self.start + i)
        )
        return logits

    def best(self, search):
        """Return each row's best continuation, finished or not."""
        ids = np.full((self.rows, self.ids.shape[2]), self.pad_id, "int32")
        logprobs = np.zeros(ids.shape, "float32")
        for row in range(self.rows):
            if not self.row_done[row]:
                for beam in range(self.beams):
                    line = self.ids[row, beam], self.logprobs[row, beam]
                    self._finish(row, self.scores[row, beam], line, search)
            _, ids[row], logprobs[row] = self.finished[row]
        return ids, logprobs

    def _finish(self, row, score, line, search):
        score = score / self.length**search.length_penalty
        if score > self.finished[row][0]:
            self.finished[row] = (score, *line)
