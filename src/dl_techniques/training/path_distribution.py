"""PathDistribution: a Keras distribution that lays out variables by their paths and shapes."""

import re
from collections.abc import Iterable

import keras

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.training.layouts import (
    LayoutRule,
    dividing_axis,
    largest_axes_first,
    rule_for,
)
from dl_techniques.training.local_rows import data_shard, rows_multiple
from dl_techniques.utils.logger import logger

DATA_AXIS, MODEL_AXIS = "data", "model"
_SHOWN = 5
_NUMBER = r"_\d+(?=/)"
# The layers whose outputs [B, T, channels] become, or are added to, the stream of tokens.
_WHOLE_CHANNELS = re.compile(
    r"(^|/)((block_\d+|cross_attention|vision_compressor)/attention/o_proj|"
    r"block_\d+/mlp/(fc2|down_proj)|patch_embedding/patch_projection|"
    r"modality_projection/(pixel_shuffle|proj|vision_projector(/fc[2468])?))/output$"
)


class PathDistribution(keras.distribution.ModelParallel):
    """Lays out variables by their paths and shapes, and batches by rows.

    Args:
        mesh: Devices along the axes "data" and "model".
        shard_over_data: Whether matrices are split along "data".
        rules: How matrices are split along "model"; None: not at all.

    Attributes:
        undivided: Path of a matrix -> the axis of the mesh along which it could not be split.
    """

    def __init__(self, mesh, shard_over_data: bool, rules: tuple[LayoutRule, ...] | None):
        super().__init__(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name=DATA_AXIS,
            auto_shard_dataset=False,
        )
        self.shard_over_data = shard_over_data
        self.rules = rules
        self.undivided: dict[str, str] = {}
        self._has_warned = False

    @property
    def size(self) -> dict[str, int]:
        """Number of devices along each axis of the mesh."""
        return dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))

    def get_variable_layout(self, variable):
        """Return the layout of a variable that is being created.

        Raises:
            ValueError: if it is a matrix that no rule of a tensor layout names.
        """
        given = getattr(variable, "_layout", None)
        if given is not None:  # Moments and gradient sums have that of their weight.
            return given
        if self.is_uncovered(variable):
            raise ValueError(_no_rule([variable]))
        axes = self.axes(variable, _layers_in_construction())
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def is_uncovered(self, variable) -> bool:
        """Tell whether a variable needs a rule and there is none."""
        return (
            self.rules is not None
            and _is_matrix(variable)
            and rule_for(variable.path, self.rules) is None
        )

    def axes(self, variable, owners: Iterable = ()) -> tuple[str | None, ...]:
        """Return the mesh axis, or None, for each axis of a covered variable.

        Args:
            variable: Its path, shape and `trainable` are read.
            owners: Layers it belongs to; an attention layer among them says how many heads it has.
        """
        shape = tuple(variable.shape)
        axes: list[str | None] = [None] * len(shape)
        if not _is_matrix(variable):
            return tuple(axes)
        rule = rule_for(variable.path, self.rules or ())
        if rule is not None and rule.axes:
            self._split(axes, variable, MODEL_AXIS, rule.axes, _head_count(owners, rule.heads))
        if self.shard_over_data:
            free = [axis for axis in largest_axes_first(shape) if axes[axis] is None]
            self._split(axes, variable, DATA_AXIS, free)
        return tuple(axes)

    def _split(self, axes, variable, mesh_axis, candidates, heads=None):
        axis = dividing_axis(variable.shape, candidates, self.size[mesh_axis], heads)
        if axis is None:
            self.undivided[variable.path] = mesh_axis
        else:
            axes[axis] = mesh_axis

    def get_tensor_layout(self, path):
        """Return the layout of a layer's output: whole channels where a weight's are split.

        Left to itself, XLA may split activations as the weights are split, and gather whole
        batches for it.

        Args:
            path: Path of the layer and "/output".
        """
        is_split = self.shard_over_data or self.rules is not None
        if not is_split or not _WHOLE_CHANNELS.search(path) or not _is_traced():
            return None
        from jax.sharding import NamedSharding, PartitionSpec

        free = PartitionSpec.UNCONSTRAINED
        return NamedSharding(self.device_mesh.backend_mesh, PartitionSpec(free, free, None))

    def get_data_layout(self, data_shape):
        """Return the layout of one array of a batch, of which this process has some rows.

        Raises:
            ValueError: if the rows do not divide.
        """
        self._warn_of_undivided()
        parts = rows_multiple(self) // data_shard(self)[1]
        if data_shape[0] % parts:
            raise ValueError(
                f"A batch of {data_shape[0]} rows does not divide over {parts} devices. Add rows "
                "without labels: local_rows(batch) or LocalRows(dataset)."
            )
        return super().get_data_layout(data_shape)

    def _warn_of_undivided(self):
        if self.undivided and not self._has_warned:
            kinds = {
                f"{re.sub(_NUMBER, '_*', path)} along {axis!r}": None
                for path, axis in self.undivided.items()
            }
            logger.warning(
                "Not split, as no axis or no number of heads divides: %s. The mesh is %s.",
                ", ".join(kinds),
                self.size,
            )
        self._has_warned = True


def layout_plan(distribution: PathDistribution, model) -> dict[str, tuple[str | None, ...]]:
    """Return path -> mesh axes of every weight of a built model, also one `without_weights`.

    Raises:
        ValueError: listing all matrices that no rule names.
    """
    uncovered = [v for v in model.variables if distribution.is_uncovered(v)]
    if uncovered:
        raise ValueError(_no_rule(uncovered))
    owners = {}
    for layer in model._flatten_layers():
        for variable in layer.variables:
            owners.setdefault(id(variable), []).append(layer)
    return {v.path: distribution.axes(v, owners[id(v)]) for v in model.variables}


def _is_matrix(variable):
    return len(variable.shape) > 1 and variable.trainable


def _head_count(layers, attribute):
    """Return how many heads the attention layer among the layers has; None without either."""
    for layer in layers:
        if attribute is not None and isinstance(layer, GroupedQueryAttention):
            return getattr(layer, attribute)
    return None


def _layers_in_construction():
    # A layout is asked for before its variable belongs to a layer. Keras' stack of name scopes,
    # which has no public access, is the one place that knows whose `build` is running.
    from keras.src.backend.common import global_state

    scopes = global_state.get_global_attribute("name_scope_stack") or ()
    return [scope.caller for scope in scopes if scope.caller is not None]


def _is_traced():
    import jax

    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def _no_rule(variables):
    shapes = [f"{variable.path} {tuple(variable.shape)}" for variable in variables]
    return (
        f"No layout rule names {len(shapes)} matrices: {_some(shapes)}. Give make_distribution "
        "a LayoutRule for each in `rules` (axes=() keeps it whole)."
    )


def _some(texts):
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
