"""Next-token cross-entropy from hidden states, without the logits of all tokens at one time."""

import keras
from keras import ops

from dl_techniques.losses.shapes import sizes_differ

# Of a chunk: its logits; their gradient carried on to the hidden states, and to the head.
_TIED = ("gtd,vd->gtv", "gtv,vd->gtd", "gtv,gtd->gvd")
_UNTIED = ("gtd,dv->gtv", "gtv,dv->gtd", "gtv,gtd->gdv")


def chunked_cross_entropy(
    hidden,
    targets,
    weights,
    head,
    chunk_size: int = 1024,
    label_smoothing: float = 0.0,
    transpose_head: bool = True,
    shards: int = 1,
):
    """Return what `NanoVLMLoss` and `NextTokenAccuracy` sum up, one chunk of tokens at a time.

    The first result divided by the sum of the weights is the loss. Only the logits of one chunk,
    float[chunk_size, V], exist at a time: the gradients of `hidden` and `head` are taken from them
    at once, and the backward pass only scales them. Tokens of weight 0 have neither loss nor
    gradient; they are moved behind the others, and chunks that hold nothing else are left out.

    Products run in the dtype of `hidden`, cross-entropy and sums in float32. A target outside
    [0, V) makes the loss NaN and has no gradient, as in `NanoVLMLoss`. No gradient flows to the
    weights.

    Where the rows of one array lie on several devices (`keras.distribution`), say on how many:
    each chunk then holds tokens of every device, and each device computes its own. With `shards=1`
    every device would compute every chunk.

    Args:
        hidden: float[B, L, D], the states that the head turns into logits.
        targets: int32[B, L] of `next_token_targets`.
        weights: float32[B, L] of `token_weights`, 0 where nothing is learned.
        head: float[V, D], the embedding table of a tied head, or float[D, V].
        chunk_size: tokens in a chunk, of each shard.
        label_smoothing: as of `NanoVLMLoss`.
        transpose_head: whether `head` is float[V, D].
        shards: number of devices that share the B rows evenly.

    Returns:
        float32[], the weighted sum of the losses; then, without gradient and 0 where the weight is
        0, the loss of each token, float32[B, L], and 1 where the largest logit is the target's,
        float32[B, L].

    Raises:
        ValueError: shapes that do not fit together, or numbers out of range.
    """
    arrays = [ops.convert_to_tensor(x) for x in (hidden, targets, weights, head)]
    _check_shapes(*arrays, transpose_head)
    # TensorFlow's variables, which stay variables there, would take a gradient of their own.
    arrays[3] = ops.reshape(arrays[3], arrays[3].shape)
    _check_numbers(arrays[0].shape[0], chunk_size, label_smoothing, shards)
    arrays[2] = ops.cast(arrays[2], "float32")
    wanted = _gradient_wanted(arrays[0]), _gradient_wanted(arrays[3])
    products = _TIED if transpose_head else _UNTIED

    def with_gradient(hidden, targets, weights, head):
        # Weights of any size leave the gradients within the range of half precision.
        shares = ops.divide_no_nan(weights, ops.max(ops.abs(weights)))
        rows = hidden, targets, shares
        told, d_hidden, d_head = _told(
            rows, head, products, chunk_size, label_smoothing, shards, wanted
        )

        def gradient(*args, upstream=None):
            # PyTorch passes the arguments, and the gradient by its name. Below, the losses are
            # multiplied by the weights and summed up, so theirs is the weights times a number.
            of_losses = (args[0] if upstream is None else upstream)[0]
            factor = ops.divide_no_nan(ops.sum(of_losses * shares), ops.sum(ops.square(shares)))
            return (
                _scaled(d_hidden, factor, hidden.dtype) if wanted[0] else None,
                None,
                None,
                _scaled(d_head, factor, head.dtype) if wanted[1] else None,
            )

        return told, gradient

    # One array: Keras' custom gradients have a single result on PyTorch.
    losses, hits = ops.unstack(ops.custom_gradient(with_gradient)(*arrays), 2)
    return ops.sum(losses * ops.stop_gradient(arrays[2])), ops.stop_gradient(losses), hits


def _told(rows, head, products, chunk_size, smoothing, shards, wanted):
    """Return float32[2, B, L], losses and hits; the gradients of the weighted sum of the losses."""
    shape = ops.shape(rows[0])
    (hidden, targets, weights), places, size, steps = _supervised_first(rows, chunk_size, shards)
    kernel = ops.cast(head, hidden.dtype)

    def add_chunk(i, so_far):
        told, d_hidden, d_head = so_far
        states, ids, shares = (_chunk(x, i * size, size) for x in (hidden, targets, weights))
        losses, hits, *softmax = _losses(ops.einsum(products[0], states, kernel), ids, smoothing)
        update = ops.stack([losses, ops.cast(hits, "float32")], axis=-1)
        update = ops.where(ops.equal(shares, 0.0)[..., None], 0.0, update)
        told = ops.slice_update(told, (0, i * size, 0), update)
        if any(wanted):
            d_logits = ops.cast(_logit_gradient(*softmax, ids, shares, smoothing), hidden.dtype)
        if wanted[0]:
            update = ops.einsum(products[1], d_logits, kernel)
            d_hidden = ops.slice_update(d_hidden, (0, i * size, 0), update)
        if wanted[1]:
            d_head = _add(d_head, ops.einsum(products[2], d_logits, states))
        return told, d_hidden, d_head

    zero = ops.zeros((), "float32")
    told = ops.stack([ops.zeros_like(weights)] * 2, axis=-1)
    d_hidden = ops.zeros_like(hidden) if wanted[0] else zero
    d_head = ops.zeros((shards, *head.shape), "float32") if wanted[1] else zero
    told, d_hidden, d_head = _loop(steps, add_chunk, (told, d_hidden, d_head))
    told = ops.reshape(_take(told, places), (*shape[:2], 2))
    if wanted[0]:
        d_hidden = ops.reshape(_take(d_hidden, places), shape)
    if wanted[1]:
        d_head = d_head[0] if shards == 1 else ops.sum(d_head, axis=0)
    return ops.transpose(told, (2, 0, 1)), d_hidden, d_head


def _supervised_first(rows, chunk_size, shards):
    """Return the arrays as [shards, n * size, ...], tokens of weight 0 last and padding behind.

    Also int[shards, T], where each token went, the size of a chunk, and how many chunks (int[])
    hold a token of another weight.
    """
    rows = [ops.reshape(x, (shards, -1, *x.shape[2:])) for x in rows]
    tokens = ops.shape(rows[0])[1]
    # On TensorFlow the number of tokens may be known at run time only.
    size = min(chunk_size, tokens) if isinstance(tokens, int) else chunk_size
    end = [0, -tokens % size]
    rows = [ops.pad(x, [[0, 0], end] + [[0, 0]] * (len(x.shape) - 2)) for x in rows]
    ignored = ops.cast(ops.equal(rows[2], 0.0), "int32")
    order = ops.argsort(ignored, axis=1)
    most = ops.max(ops.sum(1 - ignored, axis=1))
    places = ops.argsort(order, axis=1)[:, :tokens]
    hidden, targets, weights = (_take(x, order) for x in rows)
    # A NaN among ignored tokens would reach the head's gradient as 0 * NaN.
    hidden = ops.where(ops.equal(weights, 0.0)[..., None], 0.0, hidden)
    return (hidden, targets, weights), places, size, (most + size - 1) // size


def _losses(logits, targets, smoothing):
    """Return losses float32[G, T] and hits bool[G, T], and the softmax as exponentials and sums."""
    logits = ops.cast(logits, "float32")
    inside = _inside(targets, logits.shape[-1])
    largest = ops.max(logits, axis=-1)
    powers = ops.exp(logits - largest[..., None])
    total = ops.sum(powers, axis=-1)
    ids = ops.where(inside, targets, 0)
    own = ops.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    losses = ops.log(total) + largest - (1.0 - smoothing) * own
    if smoothing:
        losses = losses - smoothing * ops.mean(logits, axis=-1)
    hits = ops.logical_and(inside, _is_argmax(logits, largest, own, ids))
    return ops.where(inside, losses, float("nan")), hits, powers, total


def _is_argmax(logits, largest, own, ids):
    """Return bool[G, T]: argmax(logits) == ids, but fused by XLA (its argmax is slow on a CPU)."""
    before = ops.arange(logits.shape[-1], dtype="int32") < ids[..., None]
    earlier = ops.any(ops.logical_and(before, ops.equal(logits, largest[..., None])), axis=-1)
    return ops.logical_and(ops.equal(own, largest), ops.logical_not(earlier))


def _logit_gradient(powers, total, targets, weights, smoothing):
    """Return float32[G, T, V]: weight * (softmax - smoothed one-hot); 0 for targets outside."""
    vocabulary = powers.shape[-1]
    weights = ops.where(_inside(targets, vocabulary), weights, 0.0)
    chosen = ops.equal(ops.arange(vocabulary, dtype="int32"), targets[..., None])
    own = (1.0 - smoothing) * total[..., None]
    rest = smoothing / vocabulary * total[..., None]
    missing = ops.where(chosen, own + rest, rest)
    return (powers - missing) * (weights / total)[..., None]


def _inside(targets, vocabulary):
    return ops.logical_and(targets >= 0, targets < vocabulary)


def _chunk(x, start, size):
    """Return x[:, start : start + size]."""
    shape = (x.shape[0], size, *x.shape[2:])
    return ops.slice(x, (0, start) + (0,) * (len(shape) - 2), shape)


def _take(x, places):
    """Return [G, U, ...] of [G, T, ...]: what is at places int[G, U]."""
    return ops.take_along_axis(x, places[(...,) + (None,) * (len(x.shape) - 2)], axis=1)


def _scaled(gradient, factor, dtype):
    return ops.cast(ops.cast(gradient, "float32") * factor, dtype)


def _add(total, product):
    """Return total + product, float32, whatever the product's dtype.

    On PyTorch in place: three arrays as large as the head would live at once otherwise.
    """
    if keras.backend.backend() == "torch":
        return total.add_(product)
    return total + ops.cast(product, "float32")


def _loop(steps, body, carry):
    """Return what `carry` becomes when `body(i, carry)` ran for each i below int[] `steps`.

    TensorFlow would run several chunks at a time, and hold the logits of all of them.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.while_loop(
            lambda i, _: i < steps,
            lambda i, so_far: (i + 1, body(i, so_far)),
            (0, carry),
            parallel_iterations=1,
        )[1]
    return ops.fori_loop(0, steps, body, carry)


def _gradient_wanted(x):
    """Return whether to take the gradient of x: PyTorch knows, compilers drop what is unused."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.is_grad_enabled() and x.requires_grad
    return True


def _check_shapes(hidden, targets, weights, head, transpose_head):
    if len(hidden.shape) != 3 or len(head.shape) != 2:
        raise ValueError(
            "hidden must be float[B, L, D] and head float[V, D] or float[D, V], got shapes "
            f"{list(hidden.shape)} and {list(head.shape)}."
        )
    for name, x in (("targets", targets), ("weights", weights)):
        if sizes_differ(x.shape, hidden.shape[:2]):
            raise ValueError(
                f"{name} must have shape {list(hidden.shape[:2])}, [B, L] of hidden, got "
                f"{list(x.shape)}."
            )
    if "int" not in keras.backend.standardize_dtype(targets.dtype):
        raise ValueError(f"targets must be int32 token ids, got {targets.dtype}.")
    width = head.shape[1 if transpose_head else 0]
    if width != hidden.shape[2]:
        raise ValueError(
            f"head {list(head.shape)} with transpose_head={transpose_head} takes states of width "
            f"{width}, hidden has {hidden.shape[2]}. A tied head is [V, D] and needs "
            "transpose_head=True, an untied one is [D, V]."
        )


def _check_numbers(num_rows, chunk_size, label_smoothing, shards):
    if min(chunk_size, shards) < 1:
        raise ValueError(f"chunk_size={chunk_size} and shards={shards} must be at least 1.")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
    if num_rows is not None and num_rows % shards:
        raise ValueError(f"{num_rows} rows cannot be shared evenly by shards={shards} devices.")
