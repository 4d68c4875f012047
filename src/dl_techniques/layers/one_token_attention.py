"""Attention of one token a row to many, as in decoding, with keys and values as they lie."""

import math

from keras import ops

# With more key-value heads the zeros take as long as another order.
MOST_HEADS = 16


def attend_one_token(query, key, value, mask):
    """Return float[B, 1, num_heads, head_dim], as `ops.dot_product_attention` does.

    XLA's products on CPUs want the keys of one head as one matrix, and copy all of
    [B, S, num_kv_heads, head_dim] into that order at every step. Here a row's heads stay side by
    side in one matrix [S, num_kv_heads * head_dim], and a query has zeros in the channels of other
    heads: more arithmetic, but where heads are few it waits for memory.

    Args:
        query: float[B, 1, num_heads, head_dim].
        key: float[B, S, num_kv_heads, head_dim].
        value: The same shape.
        mask: bool, broadcastable to [B, num_heads, 1, S], or None.
    """
    batch, length, num_kv_heads, head_dim = key.shape
    num_heads = query.shape[2]
    shape = (batch, num_kv_heads, num_heads // num_kv_heads, num_kv_heads, head_dim)
    is_own = ops.reshape(ops.eye(num_kv_heads, dtype=query.dtype), (num_kv_heads, 1, -1, 1))
    query = ops.expand_dims(ops.reshape(query / math.sqrt(head_dim), (*shape[:3], head_dim)), 3)
    query = ops.reshape(query * is_own, (batch, num_heads, -1))
    key, value = (ops.reshape(x, (batch, length, -1)) for x in (key, value))
    scores = ops.einsum("bnc,bsc->bns", query, key)
    if mask is not None:
        scores = ops.where(mask[:, :, 0], scores, -1e30)
    out = ops.einsum("bns,bsc->bnc", ops.softmax(scores, axis=-1), value)
    out = ops.sum(ops.reshape(out, shape) * is_own, axis=3)
    return ops.reshape(out, (batch, 1, num_heads, head_dim))
