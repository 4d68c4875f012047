"""Pre-norm transformer blocks: the encoder's and the decoder's."""

import keras

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.feed_forward import MLP, SwiGLU


@register
class EncoderBlock(ConfiguredLayer):
    """LayerNorm -> attention -> add; LayerNorm -> MLP -> add. Every token sees every token.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Attention heads.
        mlp_dim: Width inside the MLP.
        activation: See `MLP`.
        dropout: On attention weights and after both layers of the MLP.
        norm_epsilon: Epsilon of the LayerNorms.

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
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.dropout = dropout
        self.norm_epsilon = norm_epsilon
        self.norm1, self.norm2 = (
            keras.layers.LayerNormalization(
                epsilon=norm_epsilon, name=name, dtype=self.dtype_policy
            )
            for name in ("norm1", "norm2")
        )
        self.attention = GroupedQueryAttention(
            hidden_dim,
            num_heads,
            use_qkv_bias=True,
            use_output_bias=True,
            dropout=dropout,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.mlp = MLP(
            hidden_dim, mlp_dim, activation, dropout, name="mlp", dtype=self.dtype_policy
        )

    def build(self, x_shape):
        for part in (self.norm1, self.attention, self.norm2, self.mlp):
            part.build(x_shape)

    def call(self, x, training=None):
        x = x + self.attention(self.norm1(x), training=training)
        return x + self.mlp(self.norm2(x), training=training)

    def compute_output_shape(self, x_shape):
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

    Call arguments and returns: as `GroupedQueryAttention`. Without `attention_mask` every token
    sees every token: give the causal mask (`attention_rule`) for a language model.
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
        qk_norm: bool = False,
        dropout: float = 0.0,
        norm_epsilon: float = 1e-5,
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
        self.mlp = SwiGLU(hidden_dim, mlp_dim, dropout, name="mlp", dtype=self.dtype_policy)

    def build(self, x_shape):
        for part in (self.input_norm, self.attention, self.post_attention_norm, self.mlp):
            part.build(x_shape)

    def call(
        self,
        x,
        positions=None,
        attention_mask=None,
        cache=None,
        cache_index=None,
        training=None,
    ):
        attended = self.attention(
            self.input_norm(x),
            positions,
            attention_mask,
            cache=cache,
            cache_index=cache_index,
            training=training,
        )
        if cache is not None:
            attended, cache = attended
        x = x + attended
        x = x + self.mlp(self.post_attention_norm(x), training=training)
        return x if cache is None else (x, cache)

    def compute_output_shape(self, x_shape):
        return x_shape
