"""Pre-norm transformer blocks: the encoder's, the decoder's, and gated cross-attention."""

import keras
from keras import ops

from dl_techniques.layers.attention import GroupedQueryAttention, require_values, symbolic_like
from dl_techniques.layers.configured_layer import ConfiguredLayer, call_arguments, register
from dl_techniques.layers.feed_forward import MLP, SwiGLU

NORMS = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}


def make_norm(norm_type: str, epsilon: float, name: str, dtype) -> keras.layers.Layer:
    """Return a norm of the last axis.

    Args:
        norm_type: "layer" (LayerNorm) or "rms" (RMSNorm).
        epsilon: Added to the variance or mean square.
        name: The layer's name.
        dtype: The layer's dtype policy.

    Raises:
        ValueError: if there is no such kind.
    """
    if norm_type not in NORMS:
        raise ValueError(f"norm_type={norm_type!r} must be one of {sorted(NORMS)}.")
    return NORMS[norm_type](epsilon=epsilon, name=name, dtype=dtype)


@register
class LayerScale(ConfiguredLayer):
    """Multiplies every channel by a learned factor of its own.

    Args:
        initial_value: The factors' value at the start.

    Input and output: float[..., D].

    Reference: CaiT, https://arxiv.org/abs/2103.17239.
    """

    def __init__(self, initial_value: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, x_shape):
        self.scale = self.add_weight(
            name="scale",
            shape=(x_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, x):
        return x * ops.cast(self.scale, x.dtype)

    def compute_output_shape(self, x_shape):
        return x_shape


@register
class EncoderBlock(ConfiguredLayer):
    """Norm -> attention -> scale -> add; norm -> MLP -> scale -> add; every token sees every token.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Attention heads.
        mlp_dim: Width inside the MLP.
        activation: See `MLP`.
        dropout: On attention weights and after both layers of the MLP.
        norm_epsilon: Epsilon of all norms.
        norm_type: "layer" (LayerNorm) or "rms" (RMSNorm) before attention and MLP.
        use_qkv_bias, qk_norm: See `GroupedQueryAttention`.
        layer_scale: Start of the `LayerScale` after attention and MLP; None for no scales.

    Input and output: float[B, T, hidden_dim].
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: str = "gelu_tanh",
        dropout: float = 0.0,
        norm_epsilon: float = 1e-6,
        norm_type: str = "layer",
        use_qkv_bias: bool = True,
        qk_norm: bool | str = False,
        layer_scale: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.dropout = dropout
        self.norm_epsilon = norm_epsilon
        self.norm_type = norm_type
        self.use_qkv_bias = use_qkv_bias
        self.qk_norm = qk_norm
        self.layer_scale = layer_scale
        self.norm1, self.norm2 = (
            make_norm(norm_type, norm_epsilon, name, self.dtype_policy)
            for name in ("norm1", "norm2")
        )
        self.attention = GroupedQueryAttention(
            hidden_dim,
            num_heads,
            use_qkv_bias=use_qkv_bias,
            use_output_bias=True,
            qk_norm=qk_norm,
            norm_epsilon=norm_epsilon,
            dropout=dropout,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.mlp = MLP(
            hidden_dim, mlp_dim, activation, dropout, name="mlp", dtype=self.dtype_policy
        )
        self.ls1 = self.ls2 = None
        if layer_scale is not None:
            self.ls1, self.ls2 = (
                LayerScale(layer_scale, name=name, dtype=self.dtype_policy)
                for name in ("ls1", "ls2")
            )

    def build(self, x_shape):
        for part in (self.norm1, self.attention, self.ls1, self.norm2, self.mlp, self.ls2):
            if part is not None:
                part.build(x_shape)

    def call(self, x, training=None):
        # The stream is a matrix: of three axes XLA stores the batch innermost on a GPU, where the
        # gradient of the positions sums over it, and turns the array around in every norm.
        shape, matrix = ops.shape(x), (-1, self.hidden_dim)

        def added(x, norm, part, scale):
            out = part(ops.reshape(norm(x), shape), training=training)
            out = ops.reshape(out, matrix)
            return x + (out if scale is None else scale(out))

        x = added(ops.reshape(x, matrix), self.norm1, self.attention, self.ls1)
        return ops.reshape(added(x, self.norm2, self.mlp, self.ls2), shape)

    def compute_output_shape(self, x_shape):
        return x_shape


@register
class GatedCrossAttentionBlock(ConfiguredLayer):
    """RMSNorm -> attention to a context -> times tanh(gate) -> add.

    The gate starts at zero, so that a new block changes nothing; nor does it where a token sees
    nothing of the context.

    Args:
        hidden_dim: Width of input, output and context.
        num_heads: Query heads.
        num_kv_heads, head_dim: See `GroupedQueryAttention`.
        norm_epsilon: Epsilon of the norm.

    Call arguments:
        x: float[B, T, hidden_dim].
        keys_values: What `project_context` returned for float[B, S, hidden_dim].
        attention_mask: See `GroupedQueryAttention`; True where a token may look.
        context: float[B, S, hidden_dim] itself, in place of `keys_values`.

    Output: float[B, T, hidden_dim].

    Raises:
        ValueError: unless there is one of `keys_values` and `context`.

    Reference: Flamingo, https://arxiv.org/abs/2204.14198; NVLM-X, https://arxiv.org/abs/2409.11402.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.norm_epsilon = norm_epsilon
        self.norm = make_norm("rms", norm_epsilon, "norm", self.dtype_policy)
        self.attention = GroupedQueryAttention(
            hidden_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            name="attention",
            dtype=self.dtype_policy,
        )

    def build(self, x_shape):
        self.norm.build(x_shape)
        self.attention.build(x_shape)
        self.gate = self.add_weight(name="gate", shape=(1,), initializer="zeros")

    def project_context(self, context):
        """Return the keys and values of float[B, S, hidden_dim], once for many calls.

        See `GroupedQueryAttention.project_context`.
        """
        require_values(context, self.name)
        if not self.built:
            self.build(context.shape)
        return self.attention.project_context(context)

    def call(self, x, keys_values=None, attention_mask=None, context=None):
        if keys_values is None and context is None:
            raise ValueError(f"{self.name} needs keys_values or context to attend to.")
        attended = self.attention(
            self.norm(x), attention_mask=attention_mask, keys_values=keys_values, context=context
        )
        return x + ops.cast(ops.tanh(self.gate), attended.dtype) * attended

    def compute_output_shape(self, x_shape, *args):
        return x_shape


@register
class DecoderBlock(ConfiguredLayer):
    """The Llama-style block: RMSNorm -> grouped-query attention -> add; RMSNorm -> SwiGLU -> add.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Query heads.
        mlp_dim: Width inside the SwiGLU.
        num_kv_heads, head_dim, rope_theta, rope_scaling, use_qkv_bias, qk_norm: See
            `GroupedQueryAttention`.
        dropout: On attention weights and in the SwiGLU.
        norm_epsilon: Epsilon of the RMS norms.
        cross_attention: Whether a `GatedCrossAttentionBlock` stands between the two.

    Call arguments and returns: as `GroupedQueryAttention`. Without `attention_mask` every token
    sees every token: give the causal mask (`attention_rule`) for a language model. With
    `cross_attention` also:
        context_mask: bool[B, 1, T, V], who sees what of the context; default: all see all of it.
        context: float[B, V, hidden_dim]; None leaves the cross-attention out.
        cache: a tuple of five after a call with context: the keys and values of the context and
            bool[B, V], what of it the last token saw and all later ones see, are kept in it.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float | None = 10000.0,
        rope_scaling: dict | None = None,
        use_qkv_bias: bool = False,
        qk_norm: bool | str = False,
        dropout: float = 0.0,
        norm_epsilon: float = 1e-5,
        cross_attention: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.use_qkv_bias = use_qkv_bias
        self.qk_norm = qk_norm
        self.dropout = dropout
        self.norm_epsilon = norm_epsilon
        self.cross_attention = cross_attention
        self.input_norm, self.post_attention_norm = (
            keras.layers.RMSNormalization(epsilon=norm_epsilon, name=name, dtype=self.dtype_policy)
            for name in ("input_norm", "post_attention_norm")
        )
        self.attention = GroupedQueryAttention(
            hidden_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            rope_theta,
            rope_scaling,
            use_qkv_bias=use_qkv_bias,
            qk_norm=qk_norm,
            norm_epsilon=norm_epsilon,
            dropout=dropout,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.cross_block = None
        if cross_attention:
            self.cross_block = GatedCrossAttentionBlock(
                hidden_dim,
                num_heads,
                num_kv_heads,
                head_dim,
                norm_epsilon,
                name="cross_attention",
                dtype=self.dtype_policy,
            )
        self.mlp = SwiGLU(hidden_dim, mlp_dim, dropout, name="mlp", dtype=self.dtype_policy)

    def build(self, x_shape):
        parts = (self.input_norm, self.attention, self.post_attention_norm, self.mlp)
        for part in (*parts, self.cross_block):
            if part is not None:
                part.build(x_shape)

    def call(
        self,
        x,
        positions=None,
        attention_mask=None,
        context_mask=None,
        context=None,
        cache=None,
        cache_index=None,
        training=None,
    ):
        seen = () if cache is None else cache[2:]
        attended = self.attention(
            self.input_norm(x),
            positions,
            attention_mask,
            cache=None if cache is None else cache[:2],
            cache_index=cache_index,
            training=training,
        )
        if cache is not None:
            attended, cache = attended
        x = x + attended
        if self.cross_block is not None:
            if context is not None:
                seen = (*self.cross_block.project_context(context), _later(context_mask, context))
            elif seen:
                context_mask = ops.expand_dims(ops.expand_dims(seen[2], 1), 1)
            if seen:
                x = self.cross_block(x, seen[:2], context_mask)
        x = x + self.mlp(self.post_attention_norm(x), training=training)
        return x if cache is None else (x, (*cache, *seen))

    def compute_output_shape(self, x_shape):
        return x_shape

    def compute_output_spec(self, x, *args, **kwargs):
        """Return the symbolic output of a call; with a cache also that of the updated cache."""
        given = call_arguments(self, x, *args, **kwargs)
        out = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if given.get("cache") is None:
            return out
        cache, context = symbolic_like(given["cache"]), given.get("context")
        if self.cross_block is not None and context is not None:
            heads = self.attention.num_kv_heads, self.attention.head_dim
            keys, values = (
                keras.KerasTensor((*context.shape[:2], *heads), dtype=self.compute_dtype)
                for _ in range(2)
            )
            cache = (*cache[:2], keys, values, keras.KerasTensor(context.shape[:2], dtype="bool"))
        return out, cache


def _later(context_mask, context):
    """Return bool[B, V]: what of a context the last token sees."""
    if context_mask is None:
        return ops.ones(ops.shape(context)[:2], dtype="bool")
    return context_mask[:, 0, -1]
