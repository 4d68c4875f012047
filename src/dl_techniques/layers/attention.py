"""Grouped-query attention, self or cross, with rotary positions, query-key norm and a cache."""

import math

import keras
from keras import ops

from dl_techniques.layers.cache_slots import write_slots
from dl_techniques.layers.configured_layer import (
    ConfiguredLayer,
    call_arguments,
    register,
    require_divisible,
    require_width,
)
from dl_techniques.layers.dense import Dense
from dl_techniques.layers.one_token_attention import MOST_HEADS, attend_one_token
from dl_techniques.layers.rotary_embedding import RotaryEmbedding
from dl_techniques.utils.jax_queries import jax_platform


@register
class GroupedQueryAttention(ConfiguredLayer):
    """Attention in which groups of query heads share one key-value head.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Query heads.
        num_kv_heads: Key-value heads; default `num_heads` (plain multi-head attention).
        head_dim: Channels per head; default `hidden_dim / num_heads`.
        rope_theta: Base of the rotary positions; None for no rotary positions.
        rope_scaling: See `RotaryEmbedding`.
        use_qkv_bias: Biases on the query, key and value projections.
        use_output_bias: A bias on the output projection.
        qk_norm: RMS-normalise queries and keys before the rotation: True each head on its own,
            "width" all heads as one vector.
        norm_epsilon: Epsilon of the query-key norm.
        dropout: Share of attention weights dropped in training.

    Call arguments:
        x: float[B, T, hidden_dim].
        positions: int[B, T]; default 0, 1, ... (read only with rotary positions).
        attention_mask: bool[B or 1, num_heads or 1, T or 1, S or 1], True where a query may look.
            A query that may look nowhere gives zeros before the output projection.
        cache: pair of float[B, max_len, num_kv_heads, head_dim], keys and values; S is then
            max_len, and `attention_mask` is required. It is used up (see `write_slots`).
        cache_index: slot of the cache that x's first token takes.
        keys_values: pair of float[B, S, num_kv_heads, head_dim] that `project_context` returned,
            for attention to other tokens than x; there are no rotary positions then.
        context: float[B, S, hidden_dim], these other tokens themselves, in place of `keys_values`.

    Returns:
        float[B, T, hidden_dim], with a cache: (that, the updated cache).

    Raises:
        ValueError: for heads that do not divide, other widths than hidden_dim, a mask that is not
            bool or has not 4 axes, a cache without mask, or both `keys_values` and `context`.

    Reference: GQA, https://arxiv.org/abs/2305.13245.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float | None = None,
        rope_scaling: dict | None = None,
        use_qkv_bias: bool = False,
        use_output_bias: bool = False,
        qk_norm: bool | str = False,
        norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim is None:
            require_divisible(hidden_dim, num_heads, "hidden_dim", "num_heads")
            head_dim = hidden_dim // num_heads
        require_divisible(num_heads, num_kv_heads, "num_heads", "num_kv_heads")
        if qk_norm not in (False, True, "width"):
            raise ValueError(f"qk_norm={qk_norm!r} must be False, True (each head) or 'width'.")
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.use_qkv_bias = use_qkv_bias
        self.use_output_bias = use_output_bias
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.dropout = dropout

        def dense(units, use_bias, name):
            return Dense(units, use_bias=use_bias, name=name, dtype=self.dtype_policy)

        self.q_proj = dense(num_heads * head_dim, use_qkv_bias, "q_proj")
        self.k_proj = dense(num_kv_heads * head_dim, use_qkv_bias, "k_proj")
        self.v_proj = dense(num_kv_heads * head_dim, use_qkv_bias, "v_proj")
        self.o_proj = dense(hidden_dim, use_output_bias, "o_proj")
        self.rotary_embedding = self.q_norm = self.k_norm = None
        if rope_theta is not None:
            self.rotary_embedding = RotaryEmbedding(
                head_dim, rope_theta, rope_scaling, name="rotary_embedding", dtype=self.dtype_policy
            )
        if qk_norm:
            self.q_norm, self.k_norm = (
                keras.layers.RMSNormalization(
                    epsilon=norm_epsilon, name=name, dtype=self.dtype_policy
                )
                for name in ("q_norm", "k_norm")
            )
        self.attention_dropout = keras.layers.Dropout(
            dropout, name="attention_dropout", dtype=self.dtype_policy
        )

    def build(self, x_shape):
        require_width(self, x_shape)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.build(x_shape)
        self.o_proj.build((*x_shape[:-1], self.num_heads * self.head_dim))
        if self.qk_norm:
            for norm, heads in ((self.q_norm, self.num_heads), (self.k_norm, self.num_kv_heads)):
                heads = heads if self.qk_norm == "width" else 1
                norm.build((None, None, heads * self.head_dim))

    def call(
        self,
        x,
        positions=None,
        attention_mask=None,
        cache=None,
        cache_index=None,
        keys_values=None,
        context=None,
        training=None,
    ):
        _check_mask(attention_mask)
        if context is not None:
            if keys_values is not None:
                raise ValueError(f"{self.name} takes keys_values or context, not both.")
            keys_values = self._keys_values(context)
        query, key, value = self._query_key_value(x, positions, keys_values)
        if cache is not None:
            if attention_mask is None or cache_index is None:
                raise ValueError("A cache needs cache_index and an attention_mask over its slots.")
            key, value = cache = tuple(
                write_slots(old, new, cache_index)
                for old, new in zip(cache, (key, value), strict=True)
            )
        out = self._attend(query, key, value, attention_mask, training)
        batch, length = ops.shape(x)[:2]
        out = self.o_proj(ops.reshape(out, (batch, length, self.num_heads * self.head_dim)))
        return out if cache is None else (out, cache)

    def attention_weights(self, x, positions=None, attention_mask=None, keys_values=None):
        """Return float32[B, num_heads, T, S]: how much each token attends to each.

        The arguments are those of a call. A token that may look nowhere has weights of zero.
        """
        _check_mask(attention_mask)
        query, key, _ = self._query_key_value(x, positions, keys_values)
        weights = self._weights(query, key, attention_mask)
        return weights if attention_mask is None else ops.where(attention_mask, weights, 0.0)

    def _query_key_value(self, x, positions, keys_values):
        query = self._normed_heads(self.q_proj(x), self.num_heads, self.q_norm)
        key, value = self._keys_values(x) if keys_values is None else keys_values
        if self.rotary_embedding is not None and keys_values is None:
            if positions is None:
                positions = ops.expand_dims(ops.arange(ops.shape(x)[1]), 0)
            query = self.rotary_embedding(query, positions)
            key = self.rotary_embedding(key, positions)
        return query, key, value

    def project_context(self, context):
        """Return the keys and values of float[B, S, hidden_dim], once for many calls.

        Builds the layer, where no call has built it yet.

        Returns:
            A pair of float[B, S, num_kv_heads, head_dim].

        Raises:
            ValueError: for a symbolic tensor (`keras.Input`): call the layer with `context`.
        """
        require_values(context, self.name)
        if not self.built:
            self.build(context.shape)
        return self._keys_values(context)

    def _keys_values(self, context):
        key = self._normed_heads(self.k_proj(context), self.num_kv_heads, self.k_norm)
        return key, self._heads(self.v_proj(context), self.num_kv_heads)

    def _normed_heads(self, x, num_heads, norm):
        if self.qk_norm == "width":
            return self._heads(norm(x), num_heads)
        x = self._heads(x, num_heads)
        return norm(x) if self.qk_norm else x

    def _heads(self, x, num_heads):
        batch, length = ops.shape(x)[:2]
        return ops.reshape(x, (batch, length, num_heads, self.head_dim))

    def _attend(self, query, key, value, mask, training):
        if (training and self.dropout) or _lacks_library_attention(query):
            out = self._attend_explicitly(query, key, value, mask, training)
        elif _is_faster_by_row(query, key):
            out = attend_one_token(query, key, value, mask)
        else:
            if self.num_kv_heads == 1:
                # Keras on TensorFlow shares key-value heads only where there are several.
                key, value = self._for_each_head(key), self._for_each_head(value)
            out = _library_attention(query, key, value, mask)
        if mask is None:
            return out
        sees_something = ops.transpose(ops.any(mask, axis=-1, keepdims=True), (0, 2, 1, 3))
        return ops.where(sees_something, out, ops.zeros_like(out))

    def _attend_explicitly(self, query, key, value, mask, training):
        # ops.dot_product_attention cannot drop attention weights.
        weights = ops.cast(self._weights(query, key, mask), value.dtype)
        weights = self.attention_dropout(weights, training=training)
        return ops.einsum("bnts,bsnh->btnh", weights, self._for_each_head(value))

    def _weights(self, query, key, mask):
        # Scaled before the product, which could overflow in float16.
        query = query / math.sqrt(self.head_dim)
        scores = ops.einsum("btnh,bsnh->bnts", query, self._for_each_head(key))
        scores = ops.cast(scores, "float32")
        if mask is not None:
            scores = ops.where(mask, scores, -1e30)
        return ops.softmax(scores, axis=-1)

    def _for_each_head(self, x):
        groups = self.num_heads // self.num_kv_heads
        if groups == 1:
            return x
        # Not ops.repeat, which Keras cannot trace on PyTorch without values.
        batch, length, heads, size = ops.shape(x)
        x = ops.broadcast_to(ops.expand_dims(x, 3), (batch, length, heads, groups, size))
        return ops.reshape(x, (batch, length, heads * groups, size))

    def compute_output_shape(self, x_shape):
        return x_shape

    def compute_output_spec(self, x, *args, **kwargs):
        """Return the symbolic output of a call; with a cache also that of the updated cache."""
        cache = call_arguments(self, x, *args, **kwargs).get("cache")
        out = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        return out if cache is None else (out, symbolic_like(cache))


def symbolic_like(tensors) -> tuple:
    """Return symbolic tensors of the shapes and dtypes of others."""
    return tuple(keras.KerasTensor(x.shape, dtype=x.dtype) for x in tensors)


def require_values(context, name: str) -> None:
    """Raise ValueError if a context that a layer is to project is symbolic.

    Its projections would become layers of a functional model, beside the one they belong to.
    """
    if isinstance(context, keras.KerasTensor):
        raise ValueError(
            f"{name} cannot project a symbolic context of shape {context.shape} on its own: call "
            "the layer with context=... in place of keys_values."
        )


def _check_mask(mask) -> None:
    if mask is None:
        return
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool" or len(mask.shape) != 4:
        raise ValueError(
            "attention_mask must be bool[B, num_heads, T, S], True where a query may look (axes "
            f"of 1 are broadcast), got {dtype} of shape {tuple(mask.shape)}. Cast ones and zeros, "
            "make an additive mask bool by `mask == 0`, give [T, S] as mask[None, None] and "
            "[B, T, S] as mask[:, None]."
        )


def _library_attention(query, key, value, mask):
    length, seen = query.shape[1], key.shape[1]
    if mask is None or not _is_flash_on_jax(query.dtype) or length == 1:
        return ops.dot_product_attention(query, key, value, mask=mask)
    # cuDNN has no gradient of masked attention over an odd number of tokens.
    more, more_seen = length % 2, seen % 2
    mask = ops.broadcast_to(mask, (*mask.shape[:2], length, seen))
    mask = ops.pad(mask, [[0, 0], [0, 0], [0, more], [0, more_seen]])
    query = ops.pad(query, [[0, 0], [0, more], [0, 0], [0, 0]])
    key, value = (ops.pad(x, [[0, 0], [0, more_seen], [0, 0], [0, 0]]) for x in (key, value))
    return ops.dot_product_attention(query, key, value, mask=mask)[:, :length]


def _is_flash_on_jax(dtype) -> bool:
    reduced = keras.backend.standardize_dtype(dtype) in ("bfloat16", "float16")
    return reduced and jax_platform() == "gpu"


def _lacks_library_attention(query) -> bool:
    dtype = keras.backend.standardize_dtype(query.dtype)
    if keras.backend.backend() == "torch":
        # Its gradient multiplies tiny blocks one by one there: 3/4 of the time of the demo's step.
        return dtype != "float32" and query.requires_grad and query.device.type == "cpu"
    # JAX's dot_product_attention asks for a float16 product that XLA does not compile for CPUs.
    return jax_platform() == "cpu" and dtype == "float16"


def _is_faster_by_row(query, key) -> bool:
    if jax_platform() != "cpu" or query.shape[1] != 1 or key.shape[2] > MOST_HEADS:
        return False
    # The heads of a single row are read as they lie; products of reduced types are more exact.
    return query.shape[0] != 1 and keras.backend.standardize_dtype(query.dtype) == "float32"
