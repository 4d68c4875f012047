"""A VQADataset as a `tf.data.Dataset`."""

from typing import Any

import numpy as np

from dl_techniques.datasets.vqa_batches import VQADataset


def to_tensorflow(
    dataset: VQADataset, length: int, shuffle: bool, num_parallel_calls: int, seed: int = 0
) -> Any:
    """Returns a `tf.data.Dataset` over a data set's rows; `create_tensorflow_dataset` describes it.

    Args:
        dataset: the rows; its own shuffling is not used.
        length: S, the text length that every batch of `dataset` has.
        shuffle: whether each pass has its own order.
        num_parallel_calls: batches that are prepared at the same time.
        seed: of the order.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "create_tensorflow_dataset needs TensorFlow: pip install 'dl_techniques[tensorflow]'. "
            "create_dataset works with every backend."
        ) from error

    counts = set(map(dataset.count_tiles, dataset.rows))
    slots, single = max(counts), counts == {1}

    def read(indices: np.ndarray) -> list[np.ndarray]:
        inputs, labels = dataset.batch(indices)
        arrays = [inputs["text_tokens"], labels]
        if slots:
            images = inputs["images"]
            free = [(0, 0)] * images.ndim
            free[1] = (0, slots - images.shape[1])
            images = np.pad(images, free)
            arrays += [images[:, 0] if single else images, inputs["num_images"]]
        return arrays

    def to_tensors(indices: Any) -> Any:
        types = [tf.int32, tf.int32] + ([tf.float32, tf.int32] if slots else [])
        tokens, labels, *shown = tf.numpy_function(read, [indices], types)
        inputs = {"text_tokens": tf.ensure_shape(tokens, (None, length))}
        if slots:
            size = (*dataset.image_size, 3)
            shape = (None, *size) if single else (None, slots, *size)
            inputs["images"] = tf.ensure_shape(shown[0], shape)
            if not single:
                inputs["num_images"] = tf.ensure_shape(shown[1], (None,))
        return inputs, tf.ensure_shape(labels, (None, length))

    rows = len(dataset.rows)
    indices = tf.data.Dataset.range(rows)
    if shuffle:
        indices = indices.shuffle(rows, seed=seed, reshuffle_each_iteration=True)
    batches = indices.batch(dataset.batch_size)
    return batches.map(to_tensors, num_parallel_calls=num_parallel_calls).prefetch(2)
