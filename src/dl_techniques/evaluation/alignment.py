"""How well a model's images and captions lie together: cosines, and which finds which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.losses.contrastive_loss import pool_text
from dl_techniques.models.contrast import caption_states, image_vectors, paired_rows
from dl_techniques.models.objectives import image_counts


def pair_vectors(
    model, source: Any, length: int, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of the pictures and captions of a source, float32[N, D] each.

    They are those of the contrastive loss: the mean of a picture's embeddings behind the
    projection, and the mean of the decoder's last states at the caption, which sees no picture.

    Args:
        model: A `VisionLanguageModel` with its processor.
        source: What `open_source` returns; samples without a picture are left out.
        length: Tokens per row; longer conversations are split.
        batch_size: Rows per batch.

    Raises:
        ValueError: if no sample has a picture and a caption.
    """
    stream = TrainingStream(
        {"pairs": source},
        model.processor,
        Mixture(None, "rows", 1.0, seed=0),
        StreamSettings(length=length, batch_size=batch_size, max_documents=1),
        workers=0,
    )
    pictures, captions = [], []
    for inputs, labels in stream:
        paired = ops.convert_to_numpy(paired_rows(inputs, labels))
        if not paired.any():
            continue
        embeds = model.with_vision_embeds(inputs)["vision_embeds"]
        of_pictures = image_vectors(embeds, image_counts(inputs))
        of_captions = pool_text(caption_states(model, inputs), labels != -100)
        pictures.append(ops.convert_to_numpy(of_pictures)[paired])
        captions.append(ops.convert_to_numpy(of_captions)[paired])
    if not pictures:
        raise ValueError("No sample of the source has a picture and a caption.")
    return np.concatenate(pictures), np.concatenate(captions)


def alignment(
    pictures: np.ndarray, captions: np.ndarray, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return how well pairs of vectors lie together, on a 0-1 scale but for cosines.

    Args:
        pictures: float[N, D]; row i belongs to row i of the captions.
        captions: float[N, D].
        at: Which k to report; those above N are left out.

    Returns:
        "cosine" of the pairs and "cosine_of_others" (means), and "image_to_text@k" and
        "text_to_image@k": for how many fewer than k others lie nearer than their own. Equal
        captions count as one another's.

    Raises:
        ValueError: fewer than two pairs, or arrays of other shapes.
    """
    if pictures.ndim != 2 or pictures.shape != captions.shape or len(pictures) < 2:
        raise ValueError(
            f"alignment needs two or more pairs float[N, D], got {pictures.shape} pictures and "
            f"{captions.shape} captions."
        )
    pictures, captions = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (pictures.astype("float64"), captions.astype("float64"))
    )
    cosines = pictures @ captions.T
    own, count = np.diagonal(cosines), len(cosines)
    found = {
        "cosine": float(own.mean()),
        "cosine_of_others": float((cosines.sum() - own.sum()) / (count * (count - 1))),
    }
    # A hair, so that the same caption twice does not beat itself by rounding.
    nearer = cosines > own[:, None] + 1e-9, cosines.T > own[:, None] + 1e-9
    for name, others in zip(("image_to_text", "text_to_image"), nearer, strict=True):
        ranks = others.sum(axis=1)
        found |= {f"{name}@{k}": float(np.mean(ranks < k)) for k in at if k <= count}
    return found
