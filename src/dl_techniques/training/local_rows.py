"""Batches for several devices: rows that divide evenly, and this process' part of them."""

import keras
import numpy as np

_IGNORE_INDEX = -100


def rows_multiple(distribution=None) -> int:
    """Return what the number of rows of a batch (of all processes) must be a multiple of.

    Args:
        distribution: A Keras distribution; default: the one in force, if any.
    """
    distribution = distribution or keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def data_shard(distribution=None) -> tuple[int, int]:
    """Return (which part of each batch's rows this process feeds, how many parts there are).

    They are the `process_index` and `process_count` of a `TrainingStream`. Processes that hold
    parts of one tensor-parallel group feed the same rows.

    Args:
        distribution: A Keras distribution; default: the one in force, if any.
    """
    distribution = distribution or keras.distribution.distribution()
    if distribution is None:
        return 0, 1
    count = min(distribution.num_processes, distribution.num_model_replicas)
    return distribution.data_shard_id, count


def local_rows(batch):
    """Return this process' rows of a batch, of which all processes have read the same.

    Rows without labels are added where the rows do not divide over the devices: they change no
    loss and no gradient. Without a distribution in force the batch comes back as it is.

    Args:
        batch: `(inputs, labels)` or `inputs`.
    """
    if keras.distribution.distribution() is None:
        return batch
    batch = pad_rows(batch, rows_multiple())
    index, count = data_shard()

    def part(array):
        size = len(array) // count
        return array[index * size : (index + 1) * size]

    return keras.tree.map_structure(lambda x: None if x is None else part(x), batch)


def pad_rows(batch, multiple: int):
    """Return the batch with so many more rows without labels that `multiple` divides their number.

    A batch with images always gets `num_images`, so that all batches have the same keys.

    Args:
        batch: `(inputs, labels)` or `inputs`, of NumPy arrays.
        multiple: At least 1.

    Raises:
        ValueError: for a batch of other parts, such as sample weights.
    """
    if not isinstance(batch, tuple | list):
        return _padded_inputs(batch, multiple)
    if len(batch) != 2:
        raise ValueError(f"A batch must be (inputs, labels) or inputs, got {len(batch)} parts.")
    inputs, labels = batch
    return _padded_inputs(inputs, multiple), _padded(labels, multiple, _IGNORE_INDEX)


def _padded_inputs(inputs, multiple):
    if not isinstance(inputs, dict):
        return _padded(inputs, multiple)
    images = inputs.get("images")
    if images is not None and inputs.get("num_images") is None:
        slots = images.shape[1] if len(images.shape) == 5 else 1
        inputs = {**inputs, "num_images": np.full(len(images), slots, "int32")}
    return {name: _padded(array, multiple) for name, array in inputs.items()}


def _padded(array, multiple, value=0):
    if array is None:
        return None
    array = np.asarray(array)
    missing = -len(array) % multiple
    if not missing:
        return array
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=value)


class LocalRows(keras.utils.PyDataset):
    """A data set for `fit` and `evaluate`: `local_rows` of every batch of another.

    Every process must be given the same batches in the same order, so the same seed.

    Args:
        dataset: A PyDataset of `(inputs, labels)`.
    """

    def __init__(self, dataset: keras.utils.PyDataset):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset = dataset

    @property
    def num_batches(self):
        """The number of batches."""
        return self.dataset.num_batches

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return local_rows(self.dataset[index])

    def on_epoch_begin(self):
        """Pass the call on."""
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        """Pass the call on."""
        self.dataset.on_epoch_end()
