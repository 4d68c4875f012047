"""Which share of a variable each device of a planned layout holds."""

import math

import keras

from dl_techniques.training.distribution import LAYOUTS


class PlannedLayout:
    """A layout over devices that need not be there.

    The variables of an optimizer that is built afterwards are laid out like their weights.

    Args:
        model: A model without weights.
        layout, model_parallel: See `make_distribution`.
        devices: How many devices.

    Attributes:
        axes: Path of a weight -> the mesh's axis, or None, along each of its axes.
        mesh: Devices along "data" and "model".

    Raises:
        ValueError: an unknown layout, or numbers of devices that do not fit it.
    """

    def __init__(self, model, layout: str = "single", devices: int = 1, model_parallel: int = 1):
        _check(layout, devices, model_parallel)
        self.layout, self.devices = layout, devices
        self.mesh = {"data": devices // model_parallel, "model": model_parallel}
        self.axes: dict[str, tuple] = {}
        if layout not in ("single", "data"):
            self._split(model)

    def _split(self, model):
        # Not above: PyTorch has no distributions to derive from.
        from dl_techniques.training.layouts import TENSOR_RULES
        from dl_techniques.training.path_distribution import (
            DATA_AXIS,
            MODEL_AXIS,
            PathDistribution,
            layout_plan,
        )

        mesh = keras.distribution.DeviceMesh(
            (self.mesh["data"], self.mesh["model"]),
            (DATA_AXIS, MODEL_AXIS),
            [f"cpu:{i}" for i in range(self.devices)],
        )
        rules = TENSOR_RULES if "tensor" in self.layout else None
        self.axes = layout_plan(PathDistribution(mesh, "fsdp" in self.layout, rules), model)
        for variable in model.variables:
            variable._layout = self.axes[variable.path]

    @property
    def gathers(self) -> bool:
        """Whether weights are put together before they are used."""
        return "fsdp" in self.layout

    def rows(self, batch_size: int) -> int:
        """Return the rows of a batch that one device works on.

        Raises:
            ValueError: the rows do not divide.
        """
        if batch_size % self.mesh["data"]:
            raise ValueError(
                f"batch_size={batch_size} does not divide over {self.mesh['data']} devices."
            )
        return batch_size // self.mesh["data"]

    def bytes(self, variables) -> int:
        """Return what a device holds of variables, or of gradients of them."""
        return sum(
            size_in_bytes(v) // math.prod(self.mesh[axis] for axis in self._axes(v) if axis)
            for v in variables
        )

    def gathered_bytes(self, variables) -> int:
        """Return what a device holds of variables while it uses them."""
        return sum(
            size_in_bytes(v) // math.prod(self.mesh[a] for a in self._axes(v) if a == "model")
            for v in variables
        )

    def _axes(self, variable):
        return (getattr(variable, "_layout", None) or ()) if self.axes else ()

    def __str__(self) -> str:
        if self.layout == "single":
            return "1 device"
        groups = f", model_parallel {self.mesh['model']}" if self.mesh["model"] > 1 else ""
        return f"{self.devices} devices ({self.layout}{groups})"


def size_in_bytes(variable) -> int:
    """Return the bytes of a variable's values, also of one that has none yet."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    bits = int("".join(filter(str.isdigit, dtype)) or 8)  # A bool takes a byte.
    item = bits // 8
    return item * math.prod(variable.shape)


def _check(layout, devices, model_parallel):
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}.")
    is_tensor = "tensor" in layout
    single = layout == "single" and devices != 1
    if min(devices, model_parallel) < 1 or single or is_tensor != (model_parallel > 1):
        raise ValueError(
            f"layout={layout!r} does not fit devices={devices}, model_parallel={model_parallel}: "
            "'single' has 1 device, tensor layouts a model_parallel of at least 2, others 1."
        )
    if devices % model_parallel:
        raise ValueError(f"model_parallel={model_parallel} does not divide devices={devices}.")
    if layout not in ("single", "data") and keras.backend.backend() != "jax":
        raise ValueError(f"layout={layout!r} runs on JAX only, so plan it with KERAS_BACKEND=jax.")
