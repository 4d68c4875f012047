"""Host-side checks of a batch: ids in range, as many placeholders as image tokens."""

import types

import keras
import numpy as np


class BatchChecks:
    """Checks the integer arrays of a batch before they reach a compiled step.

    Args:
        vocab_size: Ids must lie in [0, vocab_size).
        image_token_id: The placeholder; None for prefix fusion.
        tokens_per_image: Placeholders per image.
        ignore_index: The one label allowed outside the vocabulary.
    """

    def __init__(self, vocab_size, image_token_id, tokens_per_image, ignore_index=-100):
        self.vocab_size = vocab_size
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.ignore_index = ignore_index

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
        if self.image_token_id is not None:
            self._check_placeholders(tokens, inputs.get("images"), inputs.get("num_images"))

    def check_if_concrete(self, inputs: dict) -> None:
        """Check an eager call's inputs; inside a compiled function there is nothing to read."""
        values = {name: _host_array(x) for name, x in inputs.items() if name != "images"}
        if all(value is not None for value in values.values()):
            images = inputs.get("images")
            self.check(values if images is None else {**values, "images": images})

    def _check_range(self, name, ids, considered):
        bad = considered & ((ids < 0) | (ids >= self.vocab_size))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{name}[{row}, {column}] = {ids[row, column]} is out of range: ids must lie in "
                f"[0, vocab_size={self.vocab_size})."
            )

    def _check_placeholders(self, tokens, images, num_images):
        found = (tokens == self.image_token_id).sum(axis=1)
        slots = 0
        if images is not None:
            slots = images.shape[1] if len(images.shape) == 5 else 1
        counts = np.full(len(tokens), slots)
        if num_images is not None:
            counts = np.asarray(num_images)
        if (counts > slots).any() or (counts < 0).any():
            raise ValueError(f"num_images={counts.tolist()} must lie in [0, {slots}].")
        expected = counts * self.tokens_per_image
        if (found != expected).any():
            row = int(np.argmax(found != expected))
            raise ValueError(
                f"Row {row} has {found[row]} placeholders (id {self.image_token_id}), expected "
                f"{expected[row]} = {counts[row]} images x {self.tokens_per_image} tokens. Give "
                "num_images where rows hold fewer images than the images array has room for."
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

    Arrays are checked at once; a PyDataset or generator batch by batch. Of `tf.data` and PyTorch
    loaders the batches are checked where the model runs eagerly; in a compiled step a batch with
    too many placeholders gives NaN (see `placeholder_fusion`).
    """
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(checks, x)
    if isinstance(x, types.GeneratorType):
        return (_checked_batch(checks, batch) for batch in x)
    if isinstance(x, dict) or hasattr(x, "shape"):
        checks.check(x, y)
    return x
