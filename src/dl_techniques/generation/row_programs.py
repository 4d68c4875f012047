"""Moving rows in and out of a batch's state (see `programs`), as pure functions of arrays."""

from keras import ops


def put_rows(state: dict, rows: dict, places) -> dict:
    """Return the state with the rows of another state in its rows `places`, int32[n].

    Where a place is named twice, it gets the first of the rows. Both states have `cache`, `mask`
    and `token`, the first also whatever of `held` the others have. Their slots and image tokens
    may be fewer; those that are missing are never seen.
    """
    cache = []
    for block, new in zip(state["cache"], rows["cache"], strict=True):
        if len(block) > len(new):  # No context: nothing of it is seen.
            count = new[0].shape[0]
            new = (*new, *(ops.zeros((count, *x.shape[1:]), dtype=x.dtype) for x in block[2:]))
        cache.append(tuple(_put(*both, places) for both in zip(block, new, strict=True)))
    names = rows.keys() - {"cache", "mask"}
    others = {name: _put(state[name], rows[name], places) for name in names}
    return {
        **state,
        **others,
        "cache": cache,
        "mask": _put(state["mask"], rows["mask"], places, True),
    }


def _put(x, rows, places, free=0):
    """Return x[B, L, ...] with rows[n, l, ...] at the beginnings of its rows, `free` behind."""
    rows = ops.cast(rows, x.dtype)
    if len(x.shape) > 1:
        rows = _widened(rows, x.shape[1], free)
    for k in reversed(range(rows.shape[0])):
        x = ops.slice_update(x, (places[k],) + (0,) * (len(x.shape) - 1), rows[k : k + 1])
    return x


def arranged(state: dict, order, slots: int) -> dict:
    """Return a state whose rows are those of another in this order, int32[B], and its slots.

    A row may be there several times. `slots` are at least those that there are.
    """

    def take(x):
        return ops.take(x, order, axis=0)

    cache = [
        (*(_widened(take(x), slots) for x in block[:2]), *map(take, block[2:]))
        for block in state["cache"]
    ]
    others = {name: take(state[name]) for name in state.keys() - {"cache", "mask"}}
    return {**others, "cache": cache, "mask": _widened(take(state["mask"]), slots, True)}


def taken_row(cache, row, slots: int) -> list:
    """Return a copy of one row, int32[], of a cache, with its first `slots` slots."""

    def of_row(x, length):
        # On PyTorch a slice is the batch's own memory, which others write to.
        start = (row,) + (0,) * (len(x.shape) - 1)
        return ops.copy(ops.slice(x, start, (1, length, *x.shape[2:])))

    return [
        (*(of_row(x, slots) for x in block[:2]), *(of_row(x, x.shape[1]) for x in block[2:]))
        for block in cache
    ]


def _widened(x, length, value=0):
    """Return x[B, l, ...] as [B, length, ...], with a value behind."""
    if x.shape[1] == length:
        return x
    widths = [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (len(x.shape) - 2)]
    return ops.pad(x, widths, constant_values=value)
