"""Training on several devices: data parallel, fully sharded, tensor parallel."""

import dataclasses
from collections.abc import Iterable

import keras

from dl_techniques.training.layouts import TENSOR_RULES, LayoutRule
from dl_techniques.training.path_distribution import DATA_AXIS, MODEL_AXIS, PathDistribution

LAYOUTS = ("single", "data", "fsdp", "tensor", "fsdp+tensor")


def make_distribution(
    layout: str,
    devices: int | list[str] | None = None,
    model_parallel: int = 1,
    rules: Iterable[LayoutRule] = (),
) -> PathDistribution | None:
    """Return a `keras.distribution.Distribution` for JAX.

    It must be in force when the model is created and as long as the model runs::

        keras.distribution.set_distribution(make_distribution("fsdp"))
        model = create_nanovlm("nanovlm_450m")
        trainer = NanoVLMTrainer(model)
        trainer.fit(dataset)

    or inside `with make_distribution("fsdp").scope():`. The layouts give the losses of one device,
    up to rounding. They differ in what a device holds:

    - "single": everything. There is no distribution: this returns None, on any backend.
    - "data": its share of a batch's rows; all weights.
    - "fsdp": its share of the rows, and of every matrix, its gradient and its optimizer state:
      they are split along their largest axis that divides.
    - "tensor": groups of `model_parallel` neighbouring devices share the rows' work; each device
      has its share of the matrices, as `TENSOR_RULES` say. The groups share a batch's rows.
    - "fsdp+tensor": the matrices are split along one axis inside a group and along another one
      between the groups.

    Vectors (biases, norms) and what is not trained are whole on every device. So is a matrix that
    does not divide: one warning lists them when the first batch comes.

    Args:
        layout: One of the above.
        devices: How many of the devices, or their names ("gpu:0"). Default: all, of all processes.
        model_parallel: Devices that share a matrix in tensor layouts.
        rules: Rules for weights of your own; they come before `TENSOR_RULES`.

    Raises:
        ValueError: for a wrong argument, or another backend than JAX. Later, from the model's
            constructor: in tensor layouts, for a matrix that no rule names.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}.")
    if layout == "single":
        if (devices, model_parallel) != (None, 1):
            raise ValueError("layout='single' takes no devices and no model_parallel.")
        return None
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"layout={layout!r} needs the JAX backend; keras.distribution does not run on "
            f"{keras.backend.backend()}. Data parallel on TensorFlow: mirrored_strategy."
        )
    names = _chosen_devices(devices)
    is_tensor = "tensor" in layout
    if is_tensor != (model_parallel > 1) or len(names) % model_parallel:
        raise ValueError(
            f"layout={layout!r} with model_parallel={model_parallel} does not fit {len(names)} "
            "devices: tensor layouts need a model_parallel of at least 2 that divides the number "
            "of devices, the other layouts have 1."
        )
    mesh = keras.distribution.DeviceMesh(
        (len(names) // model_parallel, model_parallel), (DATA_AXIS, MODEL_AXIS), names
    )
    return PathDistribution(mesh, "fsdp" in layout, (*rules, *TENSOR_RULES) if is_tensor else None)


def _chosen_devices(devices):
    import jax

    names = there = keras.distribution.list_devices()
    if isinstance(devices, int):
        names = there[:devices] if 0 < devices <= len(there) else []
    elif devices is not None:
        names = list(devices)
    if not names or not set(names) <= set(there) or len(set(names)) < len(names):
        raise ValueError(f"devices={devices!r} must be some of the {len(there)} here: {there}.")
    if jax.process_count() > 1 and len(names) < len(there):
        raise ValueError(
            f"{jax.process_count()} processes must use all their {len(there)} devices, got "
            f"devices={devices!r}."
        )
    return names


def mirrored_strategy(devices: int | list[str] | None = None):
    """Return a `tf.distribute.MirroredStrategy`: data parallel on TensorFlow.

    Create inside its scope, train outside::

        strategy = mirrored_strategy()
        with strategy.scope():
            model = create_nanovlm("nanovlm_222m")
            trainer = NanoVLMTrainer(model)
        trainer.fit(dataset)

    Batches are those of all replicas together; see `MirroredSteps` for what is shared and how.

    Args:
        devices: How many GPUs (without any: CPUs), or names such as "GPU:0". Default: all.

    Raises:
        ValueError: on another backend, or for devices that are not there.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"mirrored_strategy needs the TensorFlow backend, this is {keras.backend.backend()}. "
            "On JAX use make_distribution."
        )
    import tensorflow as tf

    kinds = (tf.config.list_logical_devices(kind) for kind in ("GPU", "CPU"))
    there = [device.name.removeprefix("/device:") for device in next(filter(None, kinds))]
    names = there[:devices] if isinstance(devices, int) else list(devices or there)
    wanted = devices if isinstance(devices, int) else len(names)
    if not names or len(names) != wanted or not set(names) <= set(there):
        raise ValueError(f"devices={devices!r} must be some of the {len(there)} here: {there}.")
    return tf.distribute.MirroredStrategy(names)


@dataclasses.dataclass
class DeviceBytes:
    """What one device holds.

    Attributes:
        weights: Bytes of the model's variables.
        optimizer: Bytes of the optimizer's.
    """

    weights: int = 0
    optimizer: int = 0


def device_bytes(model) -> dict[str, DeviceBytes]:
    """Return what each device of this process really holds: "cpu:0" -> its bytes.

    Args:
        model: A built model; its optimizer counts if it has one with state.

    Raises:
        ValueError: if the backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(f"device_bytes needs JAX, this is {keras.backend.backend()}.")
    optimizer = model.optimizer.variables if model.optimizer is not None else []
    held: dict[str, DeviceBytes] = {}
    for kind, variables in (("weights", model.variables), ("optimizer", optimizer)):
        for variable in variables:
            for shard in variable.value.addressable_shards:
                name = f"{shard.device.platform}:{shard.device.id}"
                device = held.setdefault(name, DeviceBytes())
                setattr(device, kind, getattr(device, kind) + shard.data.nbytes)
    return held
