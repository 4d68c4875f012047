"""Host-side checks of a batch: ids in range, as many placeholders as image tokens."""

import functools
import types

import keras
import numpy as np

_FLOATS = ("images", "vision_embeds")


class BatchChecks:
    """Checks the integer arrays of a batch before they reach a compiled step.

    Args:
        vocab_size: Ids must lie in [0, vocab_size).
        image_token_id: The placeholder; None for prefix fusion.
        count_image_tokens: (height, width in pixels) -> placeholders per image.
        ignore_index: The one label allowed outside the vocabulary.

    Attributes:
        one_document: Whether rows with labels may hold one document only, not packed ones.
        num_sources: The largest id in `source_ids`; None: any.
        like_tokens: Of the class: the inputs of the shape of `text_tokens`.
    """

    like_tokens: tuple[str, ...] = (
        "attention_mask",
        "segment_ids",
        "positions",
        "turn_ids",
        "source_ids",
    )

    def __init__(self, vocab_size, image_token_id, count_image_tokens, ignore_index=-100):
        self.vocab_size = vocab_size
        self.image_token_id = image_token_id
        self.count_image_tokens = count_image_tokens
        self.ignore_index = ignore_index
        self.one_document = False
        self.num_sources = None

    def check(self, inputs, labels=None) -> None:
        """Raise ValueError that names the first bad row, what was found and what was expected."""
        if not isinstance(inputs, dict):
            inputs = {"text_tokens": inputs}
        if "text_tokens" not in inputs:
            raise ValueError(f"inputs need the key 'text_tokens'; got {sorted(inputs)}.")
        tokens = np.asarray(inputs["text_tokens"])
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"text_tokens must be integers [B, S], got {tokens.dtype} {tokens.shape}."
            )
        self._check_range("text_tokens", tokens, np.ones_like(tokens, dtype=bool))
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != tokens.shape:
                raise ValueError(
                    f"labels {labels.shape} must have the shape of text_tokens {tokens.shape}."
                )
            self._check_range("labels", labels, labels != self.ignore_index)
        self._check_keys(tokens, inputs)
        self._check_sources(inputs)
        if labels is not None and self.one_document:
            _check_one_document(inputs)
        slots, tokens_per_image = self._room_for_images(tokens, inputs)
        counts = np.full(len(tokens), slots)
        if inputs.get("num_images") is not None:
            counts = np.asarray(inputs["num_images"])
        if counts.shape != (len(tokens),) or (counts > slots).any() or (counts < 0).any():
            raise ValueError(
                f"num_images={counts.tolist()} must give each of the {len(tokens)} rows a number "
                f"in [0, {slots}], the images that the batch holds per row."
            )
        self._check_images(inputs, tokens, counts, tokens_per_image)

    def _check_images(self, inputs, tokens, counts, tokens_per_image):
        if self.image_token_id is not None:
            self._check_placeholders(tokens, counts, tokens_per_image)

    def check_if_concrete(self, inputs: dict) -> None:
        """Check an eager call's inputs; inside a compiled function there is nothing to read."""
        values = {
            name: _host_array(x)
            for name, x in inputs.items()
            if name not in _FLOATS and x is not None
        }
        if all(value is not None for value in values.values()):
            floats = {name: inputs[name] for name in _FLOATS if inputs.get(name) is not None}
            self.check({**values, **floats})

    def _check_range(self, name, ids, considered):
        bad = considered & ((ids < 0) | (ids >= self.vocab_size))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{name}[{row}, {column}] = {ids[row, column]} is out of range: ids must lie in "
                f"[0, vocab_size={self.vocab_size})."
            )

    def _check_keys(self, tokens, inputs):
        known = ("text_tokens", "images", "vision_embeds", "num_images", *self.like_tokens)
        unknown = set(inputs) - set(known)
        if unknown:
            raise ValueError(
                f"inputs have unknown keys {sorted(unknown)}; known are {', '.join(known)}."
            )
        for name in self.like_tokens:
            value = inputs.get(name)
            if value is not None and np.shape(value) != tokens.shape:
                raise ValueError(
                    f"{name} {np.shape(value)} must have the shape of text_tokens {tokens.shape}."
                )

    def _check_sources(self, inputs):
        if self.num_sources is None or inputs.get("source_ids") is None:
            return
        ids = np.asarray(inputs["source_ids"])
        bad = (ids < 0) | (ids > self.num_sources)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"source_ids[{row}, {column}] = {ids[row, column]} must lie in [0, "
                f"{self.num_sources}]: 0 for none, k for the k-th of the model's source_names."
            )

    def _room_for_images(self, tokens, inputs):
        """Return (images per row, tokens per image)."""
        images, embeds = inputs.get("images"), inputs.get("vision_embeds")
        if embeds is not None:
            shape = tuple(embeds.shape)
            if images is not None or len(shape) != 4 or shape[0] != len(tokens):
                raise ValueError(
                    f"vision_embeds must be float[B, I, T, D] with B={len(tokens)} as text_tokens, "
                    f"and take the place of images; got shape {shape}, images "
                    f"{'absent' if images is None else tuple(images.shape)}."
                )
            return shape[1], shape[2]
        if images is None:
            return 0, 0
        shape = tuple(images.shape)
        if len(shape) not in (4, 5) or shape[0] != len(tokens):
            raise ValueError(
                f"images must be float[B, I, H, W, 3] or float[B, H, W, 3] with B={len(tokens)} "
                f"as text_tokens, got shape {shape}."
            )
        slots = shape[1] if len(shape) == 5 else 1
        return slots, self.count_image_tokens(*shape[-3:-1]) if slots else 0

    def _check_placeholders(self, tokens, counts, tokens_per_image):
        found = (tokens == self.image_token_id).sum(axis=1)
        expected = counts * tokens_per_image
        if (found != expected).any():
            row = int(np.argmax(found != expected))
            raise ValueError(
                f"Row {row} has {found[row]} placeholders (id {self.image_token_id}), expected "
                f"{expected[row]} = {counts[row]} images x {tokens_per_image} tokens. Give "
                "num_images where rows hold fewer images than the images array has room for."
            )


class TaggedBatchChecks(BatchChecks):
    """The checks of models that read images by cross-attention; see `NVLM`.

    Args:
        *args: See `BatchChecks`.
        tile_tag_ids: Ids of tags of one token; None: batches with images need `image_tags`.
    """

    like_tokens = (*BatchChecks.like_tokens, "image_tags")

    def __init__(self, *args, tile_tag_ids=None):
        super().__init__(*args)
        self.tile_tag_ids = tile_tag_ids

    def _check_images(self, inputs, tokens, counts, tokens_per_image):
        tags = inputs.get("image_tags")
        if tags is not None:
            tags = np.asarray(tags)
        elif self.tile_tag_ids is not None:
            found = np.isin(tokens, self.tile_tag_ids)
            tags = np.where(found, np.cumsum(found, axis=1), 0)
        elif counts.any():
            raise ValueError("A batch with images needs image_tags: the model has no tile_tag_ids.")
        else:
            tags = np.zeros_like(tokens)
        for row, (of_row, count) in enumerate(zip(tags, counts, strict=True)):
            numbers = of_row[of_row != 0]
            if (
                sorted(set(numbers.tolist())) != list(range(1, count + 1))
                or (np.diff(numbers) < 0).any()
            ):
                raise ValueError(
                    f"Row {row} has the tags {numbers.tolist()}, expected those of its {count} "
                    "images, 1, 2, ... in this order. Give num_images where rows hold fewer images "
                    "than the images array has room for."
                )
            if self.image_token_id is not None:
                self._check_runs(row, tokens[row] == self.image_token_id, of_row, tokens_per_image)

    def _check_runs(self, row, is_placeholder, tags, tokens_per_image):
        edges = np.flatnonzero(np.diff(np.pad(is_placeholder, 1).astype(int)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start != tokens_per_image or start == 0 or tags[start - 1] == 0:
                raise ValueError(
                    f"Row {row} has {end - start} placeholders (id {self.image_token_id}) from "
                    f"place {start} on, expected {tokens_per_image} right behind the tag of their "
                    "image."
                )


def _check_one_document(inputs):
    segments = inputs.get("segment_ids")
    for row, ids in enumerate([] if segments is None else np.asarray(segments)):
        documents = len(set(ids.tolist()) - {0})
        if documents > 1:
            raise ValueError(
                f"Row {row} holds {documents} packed documents (segment_ids), of which a contrast "
                "cannot tell whose images are whose: train it on unpacked rows, or set "
                "lambda_contrast=0."
            )


def _host_array(x):
    """Return a NumPy array, or None for a symbolic or traced tensor."""
    if x is None or isinstance(x, np.ndarray | list):
        return np.asarray(x)
    if isinstance(x, keras.KerasTensor):
        return None
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return None if isinstance(x, jax.core.Tracer) else np.asarray(x)
    if backend == "tensorflow":
        return x.numpy() if hasattr(x, "numpy") else None
    import torch

    # Keras traces shapes with tensors on the meta device, which hold no values.
    if torch.compiler.is_compiling() or x.device.type == "meta":
        return None
    return keras.ops.convert_to_numpy(x)


class _CheckedDataset(keras.utils.PyDataset):
    """A PyDataset whose batches are checked as they are read."""

    def __init__(self, checks: BatchChecks, dataset: keras.utils.PyDataset):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.checks = checks
        self.dataset = dataset

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return _checked_batch(self.checks, self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def _checked_batch(checks, batch):
    inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
    checks.check(inputs, labels)
    return batch


def checked_data(checks: BatchChecks, x, y=None):
    """Return `x`, any data that Keras takes, such that every batch of it is checked.

    Arrays are checked at once; a PyDataset, generator or grain dataset batch by batch. Of `tf.data`
    and of PyTorch's and grain's loaders the batches are checked where the model runs eagerly; in a
    compiled step a batch with too many placeholders gives NaN (see `placeholder_fusion`).
    """
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(checks, x)
    if isinstance(x, types.GeneratorType):
        return (_checked_batch(checks, batch) for batch in x)
    if _is_grain_dataset(x):
        return x.map(functools.partial(_checked_batch, checks))
    if isinstance(x, dict) or hasattr(x, "shape"):
        checks.check(x, y)
    return x


def _is_grain_dataset(x):
    """Tell without grain, which need not be there."""
    modules = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    return "grain" in modules and hasattr(x, "map")
