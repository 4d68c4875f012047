"""Stages over a toy stream whose iterators can go on from any batch."""

import numpy as np
from toy_runs import LENGTH, ToyData

from dl_techniques.training.stages import Stage


class ToyStream:
    """The batches of `ToyData`, epoch after epoch.

    Args:
        seed: See `ToyData`.
        spoiled: Numbers of batches whose pictures are NaN.
        batches: After so many the data ends; None: never.
        ends: Whether that is as it should be.
    """

    def __init__(self, seed=0, spoiled=(), batches=None, ends=False):
        self.data = ToyData(batch_size=1, rows=4, seed=seed)
        self.spoiled, self.batches, self.ends = set(spoiled), batches, ends

    def __iter__(self):
        return ToyIterator(self)


class ToyIterator:
    """An iterator of a `ToyStream`."""

    def __init__(self, stream):
        self.stream, self.given = stream, 0

    def __next__(self):
        stream, number = self.stream, self.given
        if number == stream.batches:
            raise StopIteration
        epoch, batch = divmod(number, len(stream.data))
        stream.data.set_epoch(epoch)
        inputs, labels = stream.data[batch]
        if number in stream.spoiled:
            inputs = {**inputs, "images": np.full_like(inputs["images"], np.nan)}
        self.given += 1
        return inputs, labels

    def sample_ids(self):
        return [f"toy/{self.given - 1}"]

    def get_state(self):
        return {"given": self.given}

    def set_state(self, state):
        self.given = state["given"]


def align(steps=4, **changes):
    """Return a stage that trains the projection."""
    return Stage(**{"name": "align", "steps": steps, "trainable": {"modality_projection": 1e-2},
                    "data": ToyStream(1), **changes})  # fmt: skip


def tune(steps=5, **changes):
    """Return a stage that trains the projection and the decoder's last block, by two batches."""
    return Stage(
        **{
            "name": "tune",
            "steps": steps,
            "trainable": {"modality_projection": 1e-2, "language_decoder": 1e-3},
            "unfreeze_last_blocks": {"language_decoder": 1},
            "data": ToyStream(2),
            "accumulation_steps": 2,
            **changes,
        }
    )


def text_batch():
    """Return text without pictures."""
    ids = np.random.default_rng(5).integers(3, 30, (2, LENGTH)).astype("int32")
    return {"text_tokens": ids, "attention_mask": np.ones((2, LENGTH), bool)}
