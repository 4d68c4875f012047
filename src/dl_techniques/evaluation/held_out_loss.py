"""The mean loss of held-out documents: of captions with and without pictures, of plain text."""

from typing import Any

import numpy as np

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss


def held_out_loss(
    model, source: Any, length: int, batch_size: int = 16, blank_images: bool = False
) -> float:
    """Return the mean loss in nats of all learned tokens of a source.

    The model is compiled anew, without an optimizer.

    Args:
        model: A `VisionLanguageModel` with its processor.
        source: What `open_source` returns.
        length: Tokens per row.
        batch_size: Rows per batch.
        blank_images: Whether every pixel is 0, the mean of what the processor gives.

    Raises:
        ValueError: if the source is empty, or no token of it is learned.
    """
    stream = TrainingStream(
        {"held_out": source},
        model.processor,
        Mixture(None, "rows", 1.0, seed=0),
        StreamSettings(length=length, batch_size=batch_size),
        workers=0,
    )
    model.compile(loss=NanoVLMLoss(), metrics=[], weighted_metrics=[])
    total = count = 0.0
    for inputs, labels in stream:
        inputs = {name: x for name, x in inputs.items() if name != "source_ids"}
        if blank_images:
            inputs["images"] = np.zeros_like(inputs["images"])
        # The first token of a row is never learned: nothing comes before it.
        learned = np.count_nonzero(labels[:, 1:] != -100)
        loss = model.test_on_batch(inputs, labels, return_dict=True)["loss"]
        total, count = total + float(loss) * learned, count + learned
        model.reset_metrics()
    if not count:
        raise ValueError("The held-out source has no token that is learned.")
    return total / count
