"""Work on whole lists of gradients, where each extra pass over them costs time.

XLA fuses plain `keras.ops` into few passes, so JAX and TensorFlow need nothing else. PyTorch runs
each operation by itself; there the same arithmetic is done in place or by one kernel.
"""

import keras
from keras import ops

from dl_techniques.utils.jax_queries import jax_platform


def _on_torch():
    return keras.backend.backend() == "torch"


def dense_gradients(gradients, variables) -> list:
    """Return one dense tensor per variable: zeros for None, no sparse rows.

    A variable that took no part in the step (the vision encoder in a batch of text) has the
    gradient None on TensorFlow and PyTorch but zeros on JAX; zeros everywhere make the backends
    agree, moments and weight decay included.

    Raises:
        ValueError: no variable has a gradient.
    """
    gradients = list(gradients)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "No gradients for any trainable variable: the loss does not depend on the model."
        )
    return [
        ops.zeros(v.shape, dtype=v.dtype) if g is None else dense(g)
        for g, v in zip(gradients, variables, strict=True)
    ]


def dense(gradient):
    """Return a gradient as one tensor.

    TensorFlow gives rows of embedding tables as IndexedSlices, in which a row may come twice.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(gradient)
    return gradient


def group_norms(gradients, groups):
    """Return float32[len(groups)]: the Euclidean norm of each group taken as one vector.

    Args:
        gradients: dense tensors.
        groups: for each group, the indices of its gradients.
    """
    if _on_torch():
        import torch

        norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
        grouped = [torch.stack([norms[i] for i in group]) for group in groups]
        return torch.stack([torch.linalg.vector_norm(group) for group in grouped])
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients]
    grouped = [ops.stack([squares[i] for i in group]) for group in groups]
    return ops.sqrt(ops.stack([ops.sum(group) for group in grouped]))


def global_norm(gradients):
    """Return float32[]: the Euclidean norm of all gradients taken as one vector."""
    return group_norms(gradients, [range(len(gradients))])[0]


def clip_factor(norm, largest_norm: float):
    """Return float32[]: the factor that brings `norm` down to `largest_norm`, at most 1."""
    return largest_norm / ops.maximum(norm, largest_norm)


def scaled(gradients, factor) -> list:
    """Return the gradients times a scalar; on PyTorch the given tensors themselves are scaled."""
    if not _on_torch():
        return [g * ops.cast(factor, g.dtype) for g in gradients]
    import torch

    gradients = list(gradients)
    # Reading the factor is free on a CPU and saves a pass; elsewhere it would wait for the device.
    if factor.device.type != "cpu" or factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    return gradients


def clip_by_global_norm(gradients, largest_norm: float) -> list:
    """Return the gradients, scaled (see `scaled`) to a global norm of at most `largest_norm`."""
    gradients = [dense(g) for g in gradients]
    return scaled(gradients, clip_factor(global_norm(gradients), largest_norm))


def add_weighted(accumulators, gradients, weight) -> None:
    """Add `weight * gradient` (dense) to each float32 accumulator variable; None adds nothing."""
    for accumulator, gradient in zip(accumulators, gradients, strict=True):
        if gradient is None:
            continue
        if _on_torch():
            accumulator.value.addcmul_(gradient.to(accumulator.value.dtype), weight)
        else:
            accumulator.assign_add(ops.cast(gradient, "float32") * weight)


def set_to_zero(variables) -> None:
    """Set every variable to zero."""
    for variable in variables:
        if _on_torch():
            variable.value.zero_()
        else:
            variable.assign(ops.zeros(variable.shape, dtype=variable.dtype))


def move_towards(averages, variables, share) -> None:
    """Move each float32 average by a share (float32[]) of its distance to its variable."""
    if _on_torch():
        import torch

        weights = [v.value.detach().to(torch.float32) for v in variables]
        torch._foreach_lerp_([a.value for a in averages], weights, float(share))
        return
    for average, variable in zip(averages, variables, strict=True):
        average.assign_add((ops.cast(variable, "float32") - average) * share)


def run_if(predicate, update, variables) -> None:
    """Run `update()`, which assigns to `variables` and no others, if the bool[] holds.

    JAX traces a condition as pure functions, so there the new values are collected in a scope and
    assigned. A loop of no or one round stands for the condition: XLA updates what a loop carries
    in place but copies all that goes through a conditional, four times the size of the model.
    """
    if keras.backend.backend() != "jax":
        ops.cond(predicate, update, lambda: None)
        return
    import jax

    if not isinstance(predicate, jax.core.Tracer):
        if predicate:
            update()
        return

    def updated(_, *present):
        with keras.StatelessScope(list(zip(variables, present, strict=True))) as scope:
            update()
        return (False, *(scope.get_current_value(v) for v in variables))

    present = [v.value for v in variables]
    _, *values = ops.while_loop(lambda todo, *_: todo, updated, (predicate, *present))
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def run_where(predicate, update, variables) -> None:
    """Do as `run_if`, for a predicate that nearly always holds.

    On an accelerator of JAX the update is computed in any case, and each variable's new or old
    value chosen as it is written: for a loop the host would wait there for all that came before.
    """
    if jax_platform() in (None, "cpu"):
        run_if(predicate, update, variables)
        return
    present = [v.value for v in variables]
    with keras.StatelessScope(list(zip(variables, present, strict=True))) as scope:
        update()
    for variable, value in zip(variables, present, strict=True):
        variable.assign(ops.where(predicate, scope.get_current_value(variable), value))


def torch_fused_adamw(
    *,
    parameters,
    gradients,
    momentums,
    velocities,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> None:
    """Update torch parameters and moments in place, by Keras' definition of AdamW.

    Keras adds epsilon to sqrt(v), PyTorch to sqrt(v / (1 - beta_2 ** step)); the same update
    needs a rescaled epsilon. The kernel reads memory as laid out, so layouts must agree.
    """
    import torch
    from torch.optim.adamw import adamw

    gradients = [
        g if g.dtype == p.dtype and g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        for g, p in zip(gradients, parameters, strict=True)
    ]
    with torch.no_grad():
        adamw(
            parameters,
            gradients,
            momentums,
            velocities,
            [],
            # One counter per parameter, which the function raises before it updates.
            list(torch.full((len(parameters),), step - 1.0, device=parameters[0].device)),
            fused=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=epsilon / (1.0 - betas[1] ** step) ** 0.5,
            maximize=False,
        )
