"""VisionCache: embeddings of images that were encoded before."""

import hashlib
import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from dl_techniques.preprocessing.images import describe_source, open_image, read_stream


class VisionCache:
    """The image embeddings used last, up to a number of bytes.

    An entry's key is the digest of the image's encoded bytes (of an image in memory: its type,
    shape and pixels), of the preprocessing's settings and of the encoder's weights, so that
    neither another resize nor another training step ever gives an old embedding.

    Args:
        max_bytes: Entries used longest ago are dropped beyond it; an image larger than all of it
            is not kept.
        encoder: The `encoder_digest` of a model whose weights will not change; None: the digest
            is computed for every call of `generate`.
    """

    def __init__(self, max_bytes: int = 256 * 2**20, encoder: str | None = None):
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} must be at least 0.")
        self.max_bytes = max_bytes
        self.encoder = encoder
        self._entries: OrderedDict[str, Any] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    def get(self, key: str):
        """Return float[n, T, D] in NumPy, the embeddings of an image's n tiles, or None."""
        found = self._entries.get(key)
        if found is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: str, embeds) -> None:
        """Keep float[n, T, D] under a key."""
        # This copies: a row of a batch would keep all of the batch in memory.
        embeds = ops.convert_to_numpy(embeds)
        if key in self._entries or embeds.nbytes > self.max_bytes:
            return
        self._entries[key] = embeds
        self._bytes += embeds.nbytes
        while self._bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.nbytes

    def stats(self) -> dict[str, int]:
        """Return `hits`, `misses`, `entries`, `bytes` and `max_bytes`."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "entries": len(self._entries),
            "bytes": self._bytes,
            "max_bytes": self.max_bytes,
        }

    def clear(self) -> None:
        """Drop every entry; the counts of hits and misses stay."""
        self._entries.clear()
        self._bytes = 0


def image_digest(source: Any) -> str:
    """Return the digest of an image source; see `VisionCache`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: for what is no image source.
    """
    if isinstance(source, str | os.PathLike):
        return _digest(b"encoded", Path(source).read_bytes())
    if isinstance(source, bytes | bytearray | memoryview):
        return _digest(b"encoded", bytes(source))
    if hasattr(source, "read"):
        return _digest(b"encoded", read_stream(source, describe_source(source)))
    if isinstance(source, np.ndarray):
        return _digest(f"array {source.dtype} {source.shape}".encode(), source.tobytes())
    source = open_image(source, max_pixels=math.inf)  # Refuses what is no image.
    kind = f"{type(source).__name__} {source.mode} {source.size} {source.getexif().get(0x0112)}"
    palette = source.palette and (source.palette.mode, source.getpalette(None))
    return _digest(f"{kind} {palette} {source.info.get('transparency')}".encode(), source.tobytes())


def settings_digest(settings: dict) -> str:
    """Return the digest of JSON-ready settings."""
    return _digest(json.dumps(settings, sort_keys=True).encode())


def encoder_digest(model) -> str:
    """Return a digest of the weights that make image embeddings, from sums over each of them.

    One of the sums tells the same values in another order apart.
    """
    weights = [*model.vision_encoder.weights, *model.modality_projection.weights]
    sums = []
    for weight in weights:
        value = ops.reshape(ops.cast(weight.value, "float32"), (-1,))
        place = ops.linspace(0.0, 1.0, value.shape[0])
        sums += [ops.sum(value), ops.sum(ops.square(value)), ops.sum(value * place)]
    return _digest(ops.convert_to_numpy(ops.stack(sums)).tobytes())


def _digest(*parts: bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()
