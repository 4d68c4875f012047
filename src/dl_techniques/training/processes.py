"""Several processes that train one model: how they find each other and what only one may do.

One process per host, with all devices of its host, on JAX. By hand, on every host i of N::

    python train.py --coordinator=HOST0:12345 --num-processes=N --process-id=i

where `train.py` begins with `initialize_processes("HOST0:12345", N, i)`. Under Slurm the numbers
are read from the job::

    #SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8
    srun python train.py  # Begins with `initialize_processes()`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

_EPHEMERAL_PORTS = range(61440, 65536)


def initialize_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seed: int = 0,
) -> None:
    """Join the other processes, and give all the same random seed; before anything is computed.

    Args:
        coordinator: "host:port" of process 0, where it must be free. Default: Slurm's variables
            say all three.
        num_processes: How many there are.
        process_id: This one's number, from 0.
        seed: What `keras.utils.set_random_seed` gets, so that all start from the same weights.

    Raises:
        ValueError: if only some of the three are given, or none and this is no Slurm job, or the
            backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Several processes need the JAX backend, this is {keras.backend.backend()}."
        )
    given = (coordinator, num_processes, process_id)
    local_devices = None
    if None in given:
        if given != (None, None, None):
            raise ValueError(
                "coordinator, num_processes and process_id go together: give all three, or none in "
                f"a Slurm job; got {given}."
            )
        coordinator, num_processes, process_id, local_devices = slurm_processes(os.environ)
    import jax

    # What was not given is None on purpose. JAX's own detection of Slurm would leave a process one
    # GPU only, even if it is alone on its host.
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",
    )
    keras.utils.set_random_seed(seed)


def slurm_processes(variables) -> tuple[str, int, int, list[int] | None]:
    """Return (coordinator, number of processes, this process, local devices) of a Slurm step.

    The local devices are None (all) for one task per node, else one per task.

    Args:
        variables: The environment.

    Raises:
        ValueError: naming the variables that are missing.
    """
    names = ("JOB_ID", "STEP_NODELIST", "STEP_NUM_NODES", "NTASKS", "PROCID", "LOCALID")
    missing = [f"SLURM_{name}" for name in names if f"SLURM_{name}" not in variables]
    if missing:
        raise ValueError(
            "Give coordinator, num_processes and process_id, or start with srun in a Slurm job: "
            f"the environment lacks {', '.join(missing)}."
        )
    job, hosts, nodes, tasks, process, local = (variables[f"SLURM_{name}"] for name in names)
    port = _EPHEMERAL_PORTS[int(job) % len(_EPHEMERAL_PORTS)]
    local_devices = None if tasks == nodes else [int(local)]
    return f"{_first_host(hosts)}:{port}", int(tasks), int(process), local_devices


def _first_host(hosts):
    """Return the first of "node1,node2" or "node[01-04,7],other": "node1" or "node01"."""
    prefix, number, suffix = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,]*)", hosts).groups()
    return prefix + (number or "") + suffix


def process_count() -> int:
    """Return the number of processes that run this model together."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """Return this process' number, from 0."""
    if keras.backend.backend() != "jax":
        return 0
    import jax

    return jax.process_index()


def is_main_process() -> bool:
    """Tell whether this process is the one that writes files and progress."""
    return process_index() == 0


def any_process(flag: bool) -> bool:
    """Tell whether the flag is set in any process; all must ask, at the same step.

    So that all stop after the same step when one of them was told to.
    """
    if process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather_json(value) -> list:
    """Return the JSON-ready values of all processes, in their order; all must call this."""
    if process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def full_value(variable) -> np.ndarray:
    """Return the whole value of a variable, however it is split.

    With several processes all must call this, for the same variables in the same order.

    Args:
        variable: A Keras variable.
    """
    value = variable.value
    if process_count() > 1 and not value.is_fully_replicated:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(value, tiled=True)
    return keras.ops.convert_to_numpy(value)


def assign_full(variable, value: np.ndarray) -> None:
    """Give a variable a whole value; every device takes only its part of it.

    With several processes all must give the same value.

    Args:
        variable: A Keras variable, split or not.
        value: Of the variable's shape.
    """
    layout = getattr(variable, "_layout", None)
    if layout is None:
        variable.assign(value)
        return
    import jax

    value = np.asarray(value)
    if value.shape != tuple(variable.shape):
        raise ValueError(
            f"{variable.path} has shape {tuple(variable.shape)}, got a value of {value.shape}."
        )
    dtype = keras.backend.standardize_dtype(variable.dtype)
    value = value.astype(dtype)
    sharding = layout.backend_layout
    parts = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    variable.assign(parts)


@contextmanager
def whole_weights(model) -> Iterator[None]:
    """Hold the model's weights whole in this process' memory, so that it can be saved.

    All processes must enter; the model cannot run inside::

        with whole_weights(model):
            if is_main_process():
                model.save("model.keras")

    Args:
        model: A built Keras model, optimizer included if it is built.
    """
    variables = list(model.variables)
    optimizer = getattr(model, "optimizer", None)  # None before `compile`.
    if optimizer is not None:
        variables += optimizer.variables
    with _exchanged(variables, lambda whole, held: whole if is_main_process() else held):
        yield


@contextmanager
def own_copy(model) -> Iterator[None]:
    """Let each process run the whole model by itself, on its first device; all must enter.

    The device must have room for it; the optimizer stays as it is.

    Args:
        model: A built Keras model.
    """

    def on_first_device(whole, held):
        import jax

        return jax.device_put(whole, jax.local_devices()[0])

    with _exchanged(model.variables, on_first_device):
        yield


@contextmanager
def _exchanged(variables, value_for):
    """Give variables other values meanwhile, where there are several processes.

    Args:
        variables: The same ones in all processes.
        value_for: (whole value as an array of NumPy, what is held) -> what is held meanwhile.
    """
    if process_count() == 1:
        yield
        return
    values = [variable._value for variable in variables]
    distribution = keras.distribution.distribution()
    try:
        for variable in variables:
            variable._value = value_for(full_value(variable), variable._value)
        # What creates variables or arrays meanwhile does so for this process alone.
        keras.distribution.set_distribution(None)
        yield
    finally:
        keras.distribution.set_distribution(distribution)
        for variable, value in zip(variables, values, strict=True):
            variable._value = value
