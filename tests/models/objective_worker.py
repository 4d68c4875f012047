"""What `test_objectives` runs in a process with two devices: prints the losses as JSON."""

import contextlib
import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

import conftest  # noqa: F401, E402  Quiet libraries, exact products, the compilation cache.
import keras  # noqa: E402
import numpy as np  # noqa: E402
from test_objectives import LAMBDA, contrast_batch, new_model, rows_of  # noqa: E402

from dl_techniques.models.objectives import Objective  # noqa: E402
from dl_techniques.training.distribution import (  # noqa: E402
    make_distribution,
    mirrored_strategy,
)


def two_devices():
    """Return what the model is made inside of, what it is trained inside of, and how many."""
    if keras.backend.backend() == "jax":
        distribution = make_distribution("data")
        return distribution.scope, distribution.scope, distribution.device_mesh.devices.size
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = mirrored_strategy()
    return strategy.scope, contextlib.nullcontext, strategy.num_replicas_in_sync


def trained(objective, chunk_size, rows, make=contextlib.nullcontext, train=contextlib.nullcontext):
    """Return what three steps report."""
    batch, labels = rows_of(*contrast_batch(), rows)
    batch["source_ids"] = np.where(batch["text_tokens"] % 2, 1, 2).astype("int32")
    with make():
        model = new_model(chunk_size=chunk_size, objective=objective, eager=False)
        model.source_names = ["a", "b"]
    with train():
        return [model.train_on_batch(batch, labels, return_dict=True) for _ in range(3)]


def main():
    make, train, devices = two_devices()
    runs = [(Objective(0.7, LAMBDA), None, [0, 1, 2, 4, 3]), (Objective(0.7, LAMBDA), 5, [0, 2, 1])]
    if keras.backend.backend() == "jax":
        runs = [(Objective(0.7, LAMBDA, 0.5), 5, [0, 1, 2, 4])]
    results = [
        {"devices": devices, "one": trained(*run), "two": trained(*run, make, train)}
        for run in runs
    ]
    print(json.dumps(results))


main()
