"""LanguageDecoder: a Llama-style language model; by keyword SmolLM2, Llama 2/3, Qwen2/2.5."""

import keras
from keras import ops

from dl_techniques.layers.attention_mask import attention_rule
from dl_techniques.layers.block_runner import BlockRunner
from dl_techniques.layers.cache_slots import nan_without_slots
from dl_techniques.layers.configured_layer import ConfiguredLayer, call_arguments, register
from dl_techniques.layers.transformer_blocks import DecoderBlock


@register
class LanguageDecoder(ConfiguredLayer):
    """Token embedding -> `num_layers` decoder blocks -> RMSNorm -> vocabulary logits.

    Args:
        vocab_size: Rows of the embedding table.
        hidden_dim, num_heads, num_kv_heads, head_dim, mlp_dim, dropout, rope_theta, rope_scaling,
            use_qkv_bias, qk_norm, norm_epsilon: See `DecoderBlock`.
        num_layers: Number of blocks.
        max_positions: The longest sequence, in tokens; a longer one is an error.
        tie_embeddings: Whether the head is the transposed embedding table.
        cross_attention_every: k: each k-th block has a gated cross-attention (see `DecoderBlock`);
            None for a decoder that sees nothing but its own sequence.
        remat: Whether training keeps only the blocks' inputs and computes their insides again for
            the gradients: less memory, a third more work.

    Call arguments:
        inputs: int[B, T] token ids, or float[B, T, hidden_dim] embeddings.
        attention_mask: bool[B, S], False = padding on either side. S = T, or with a cache the
            number of its slots.
        segment_ids: int[B, S], packed documents 1, 2, ...
        positions: int[B, T]; default: the real tokens before that may be seen, so that they restart
            in every segment.
        image_ids: int[B, S], k for the tokens of image k, else 0: these see their whole image.
        turn_ids: int[B, S], k for tokens that turn k alone sees, 0 for those that all turns see.
        cache: what `make_cache` gave, or an earlier call returned.
        cache_index: the slot of the first of the T tokens, int[], or int[B] for each row's own.
        context, context_mask: See `DecoderBlock`; needs `cross_attention_every`.
        return_hidden: return float[B, T, hidden_dim] after the last norm instead of logits.

    Returns:
        float[B, T, vocab_size] logits, with a cache: (logits, the updated cache).

    Raises:
        ValueError: for more positions than `max_positions`, more tokens than the cache has slots
            left, or a context without `cross_attention_every`. Where compiled code computes
            `cache_index`, rows that the cache has no room for become NaN.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        dropout: float = 0.0,
        max_positions: int = 8192,
        rope_theta: float = 10000.0,
        rope_scaling: dict | None = None,
        use_qkv_bias: bool = False,
        qk_norm: bool = False,
        norm_epsilon: float = 1e-5,
        tie_embeddings: bool = True,
        remat: bool = False,
        cross_attention_every: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if cross_attention_every is not None and not 1 <= cross_attention_every <= num_layers:
            raise ValueError(
                f"cross_attention_every={cross_attention_every} must be None or lie in [1, "
                f"num_layers={num_layers}]."
            )
        self.vocab_size = vocab_size
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.max_positions = max_positions
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.use_qkv_bias = use_qkv_bias
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.tie_embeddings = tie_embeddings
        self.remat = remat
        self.cross_attention_every = cross_attention_every
        self.token_embedding = keras.layers.ReversibleEmbedding(
            vocab_size,
            hidden_dim,
            tie_weights=tie_embeddings,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            # Embedding layers do not cast their table; the head's matmul would run in float32.
            reverse_dtype=self.compute_dtype,
            name="token_embedding",
            dtype=self.dtype_policy,
        )
        self.blocks = [
            DecoderBlock(
                hidden_dim,
                num_heads,
                mlp_dim,
                num_kv_heads,
                head_dim,
                rope_theta,
                rope_scaling,
                use_qkv_bias,
                qk_norm,
                dropout,
                norm_epsilon,
                bool(cross_attention_every) and (i + 1) % cross_attention_every == 0,
                name=f"block_{i}",
                dtype=self.dtype_policy,
            )
            for i in range(num_layers)
        ]
        self.norm = keras.layers.RMSNormalization(
            epsilon=norm_epsilon, name="norm", dtype=self.dtype_policy
        )

    def build(self, inputs_shape):
        self.token_embedding.build((None, None))
        for part in (*self.blocks, self.norm):
            part.build((None, None, self.hidden_dim))

    def call(
        self,
        inputs,
        attention_mask=None,
        segment_ids=None,
        positions=None,
        image_ids=None,
        turn_ids=None,
        cache=None,
        cache_index=None,
        context=None,
        context_mask=None,
        return_hidden=False,
        training=None,
    ):
        if context is not None and self.cross_attention_every is None:
            raise ValueError(f"{self.name} has no cross-attention (cross_attention_every=None).")
        x = self.token_embedding(inputs) if len(inputs.shape) == 2 else inputs
        length = ops.shape(x)[1]
        slots = ops.shape(cache[0][0])[1] if cache is not None else length
        if isinstance(slots, int) and slots > self.max_positions:
            raise ValueError(
                f"{slots} positions are more than max_positions={self.max_positions} of "
                f"{self.name}: shorten the sequence or raise max_positions."
            )
        query_slots = ops.arange(length, dtype="int32")
        if cache is not None:
            query_slots = query_slots + ops.reshape(cache_index, (-1, 1))
            x = nan_without_slots(x, query_slots, slots)
        mask, default_positions = attention_rule(
            query_slots, slots, attention_mask, segment_ids, image_ids, turn_ids
        )
        positions = default_positions if positions is None else positions
        new_cache, run = [], BlockRunner(self.remat, training)
        for i, block in enumerate(self.blocks):
            seen = {"context": context if block.cross_attention else None}
            # Keras itself gives an absent mask of `context` by its name.
            args = (x, positions, mask, *(() if context_mask is None else (context_mask,)))
            if cache is None:
                x = run(block, *args, **seen)
                continue
            x, block_cache = block(
                *args, **seen, cache=cache[i], cache_index=cache_index, training=training
            )
            new_cache.append(block_cache)
        x = self.norm(x)
        out = x if return_hidden else self.token_embedding(x, reverse=True)
        return out if cache is None else (out, new_cache)

    @property
    def head(self) -> tuple:
        """The matrix that turns states into logits, and whether it is the tied table [V, D]."""
        table = self.token_embedding
        return (
            (table.embeddings, True) if self.tie_embeddings else (table.reverse_embeddings, False)
        )

    def make_cache(self, batch_size: int, max_length: int) -> list:
        """Return zeros: per block a (keys, values) pair of [B, max_length, kv_heads, head_dim]."""
        attention = self.blocks[0].attention
        shape = (batch_size, max_length, attention.num_kv_heads, attention.head_dim)

        def zeros():  # Each of its own, as they are written in place.
            return ops.zeros(shape, dtype=self.compute_dtype)

        return [(zeros(), zeros()) for _ in self.blocks]

    def compute_output_spec(self, *args, **kwargs):
        """Return the symbolic output of a call; with a cache also that of the updated cache."""
        given = call_arguments(self, *args, **kwargs)
        shape = given["inputs"].shape[:2]
        width = self.hidden_dim if given.get("return_hidden") else self.vocab_size
        out = keras.KerasTensor((*shape, width), dtype=self.compute_dtype)
        if given.get("cache") is None:
            return out
        x = keras.KerasTensor((*shape, self.hidden_dim), dtype=self.compute_dtype)
        blocks = zip(self.blocks, given["cache"], strict=True)
        context = given.get("context")
        return out, [b.compute_output_spec(x, context=context, cache=c)[1] for b, c in blocks]

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:2], self.vocab_size)
