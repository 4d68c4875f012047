"""VisionResampler and VisionTokenCompressor: any number of vision tokens as a fixed number."""

import math

import keras
from keras import ops

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.layers.configured_layer import ConfiguredLayer, register, require_fixed
from dl_techniques.layers.feed_forward import MLP
from dl_techniques.layers.transformer_blocks import make_norm

MODES = ("perceiver", "avgpool")


@register
class ResamplerBlock(ConfiguredLayer):
    """Norm -> queries attend to tokens -> add; norm -> MLP -> add.

    Args:
        hidden_dim: Width of queries and tokens.
        num_heads: Attention heads.
        norm_epsilon: Epsilon of the norms.

    Call arguments: queries float[B, Q, hidden_dim], tokens float[B, N, hidden_dim].
    Output: float[B, Q, hidden_dim].
    """

    def __init__(self, hidden_dim: int, num_heads: int = 8, norm_epsilon: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.norm_epsilon = norm_epsilon
        self.query_norm, self.token_norm, self.mlp_norm = (
            make_norm("layer", norm_epsilon, name, self.dtype_policy)
            for name in ("query_norm", "token_norm", "mlp_norm")
        )
        self.attention = _cross_attention(hidden_dim, num_heads, self.dtype_policy)
        self.mlp = MLP(hidden_dim, 4 * hidden_dim, "gelu", name="mlp", dtype=self.dtype_policy)

    def build(self, queries_shape, tokens_shape=None):
        parts = (self.query_norm, self.token_norm, self.attention, self.mlp_norm, self.mlp)
        for part in parts:
            part.build((None, None, self.hidden_dim))

    def call(self, queries, tokens):
        context = self.token_norm(tokens)
        queries = queries + self.attention(self.query_norm(queries), context=context)
        return queries + self.mlp(self.mlp_norm(queries))

    def compute_output_shape(self, queries_shape, tokens_shape=None):
        return queries_shape


@register
class VisionResampler(ConfiguredLayer):
    """Turns any number of vision tokens into `num_tokens`, of the same width.

    "perceiver": learned queries read the tokens in `depth` blocks, then a LayerNorm. "avgpool":
    the means of the cells of a coarser square grid; nothing is learned.

    Args:
        num_tokens: Number of tokens of the output; a square for "avgpool".
        mode: "perceiver" or "avgpool".
        depth: Number of `ResamplerBlock`s; "perceiver" only.
        num_heads: Attention heads; "perceiver" only.

    Input: float[B, N, D], for "avgpool" the rows of a square grid. Output: float[B, num_tokens, D].

    Raises:
        ValueError: for an unknown mode, or numbers of tokens that make no square grid.

    Reference: Perceiver, https://arxiv.org/abs/2103.03206; Flamingo's resampler,
    https://arxiv.org/abs/2204.14198.
    """

    def __init__(
        self,
        num_tokens: int = 64,
        mode: str = "perceiver",
        depth: int = 2,
        num_heads: int = 8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {list(MODES)}.")
        if num_tokens < 1 or depth < 1:
            raise ValueError(f"num_tokens={num_tokens} and depth={depth} must be at least 1.")
        if mode == "avgpool":
            _side(num_tokens, "num_tokens")
        self.num_tokens = num_tokens
        self.mode = mode
        self.depth = depth
        self.num_heads = num_heads
        self.blocks = []
        self.norm = None

    def build(self, tokens_shape):
        width = tokens_shape[-1]
        if self.mode == "avgpool":
            return
        self.queries = _add_queries(self, self.num_tokens, width)
        self.blocks = [
            ResamplerBlock(width, self.num_heads, name=f"block_{i}", dtype=self.dtype_policy)
            for i in range(self.depth)
        ]
        self.norm = make_norm("layer", 1e-6, "norm", self.dtype_policy)
        for part in (*self.blocks, self.norm):
            part.build((None, None, width))

    def call(self, tokens):
        if self.mode == "avgpool":
            return self._pooled(tokens)
        x = _for_each_row(self.queries, tokens)
        for block in self.blocks:
            x = block(x, tokens)
        return self.norm(x)

    def _pooled(self, tokens):
        batch, length, width = ops.shape(tokens)
        if tokens.shape[1] is None:
            side = ops.cast(ops.round(ops.sqrt(ops.cast(length, "float32"))), "int32")
        else:
            side = _side(length, "The number of vision tokens")
        cells = ops.cast(_cell_means(side, math.isqrt(self.num_tokens)), tokens.dtype)
        grid = ops.reshape(tokens, (batch, side, side, width))
        pooled = ops.einsum("ar,bc,nrcd->nabd", cells, cells, grid)
        return ops.reshape(pooled, (batch, self.num_tokens, width))

    def compute_output_shape(self, tokens_shape):
        return tokens_shape[0], self.num_tokens, tokens_shape[-1]


@register
class VisionTokenCompressor(ConfiguredLayer):
    """LayerNorm(queries + attention of learned queries to the tokens).

    Args:
        input_dim: Width of the tokens.
        num_queries: Number of tokens of the output.
        num_heads: Attention heads.

    Input: float[B, N, input_dim]. Output: float[B, num_queries, input_dim].
    """

    def __init__(self, input_dim: int, num_queries: int = 256, num_heads: int = 8, **kwargs):
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.attention = _cross_attention(input_dim, num_heads, self.dtype_policy)
        self.norm = make_norm("layer", 1e-6, "norm", self.dtype_policy)

    def build(self, tokens_shape):
        self.queries = _add_queries(self, self.num_queries, self.input_dim)
        self.attention.build(tokens_shape)
        self.norm.build((None, None, self.input_dim))

    def call(self, tokens):
        queries = _for_each_row(self.queries, tokens)
        return self.norm(queries + self.attention(queries, context=tokens))

    def compute_output_shape(self, tokens_shape):
        return tokens_shape[0], self.num_queries, self.input_dim


def _cross_attention(width, num_heads, dtype):
    biases = {"use_qkv_bias": True, "use_output_bias": True}
    return GroupedQueryAttention(width, num_heads, **biases, name="attention", dtype=dtype)


def _add_queries(layer, number, width):
    return layer.add_weight(
        name="queries",
        shape=(number, width),
        initializer=keras.initializers.TruncatedNormal(stddev=0.02),
    )


def _for_each_row(queries, tokens):
    queries = ops.expand_dims(ops.cast(queries, tokens.dtype), 0)
    return ops.broadcast_to(queries, (ops.shape(tokens)[0], *queries.shape[1:]))


def _side(count: int, what: str) -> int:
    require_fixed(count, what)
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{what} must be a square for mode='avgpool', got {count}.")
    return side


def _cell_means(fine, coarse: int):
    """Return float32[coarse, fine]: row i averages the places floor(i f / c) to ceil((i+1) f / c).

    Each cell of the coarse line has at least one place, also where it is the finer one.
    """
    cells = ops.expand_dims(ops.arange(coarse, dtype="int32"), 1)
    places = ops.expand_dims(ops.arange(fine, dtype="int32"), 0)
    first = cells * fine // coarse
    end = ((cells + 1) * fine + coarse - 1) // coarse
    inside = ops.cast(ops.logical_and(places >= first, places < end), "float32")
    return inside / ops.sum(inside, axis=1, keepdims=True)
