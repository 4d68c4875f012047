"""Adds up the matrix products of a training step, layer by layer, forward and backward."""

import math

import keras

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.layers.vision_resampler import VisionResampler, VisionTokenCompressor


class MatrixProducts:
    """Adds up the matrix products of a step, in the order of the data's way through the layers.

    A product of [rows, n] and [n, m] takes 2 * rows * n * m operations. The backward pass has one
    more for the gradient of the input, if something trained lies before it, and one for the
    gradient of the weights, if they are trained.

    Attributes:
        forward: Operations of the forward pass.
        backward: Operations of the backward pass.
        flows: Whether a gradient has to reach the present place.
    """

    def __init__(self, flows: bool = False):
        self.forward = 0
        self.backward = 0
        self.flows = flows

    def weights(self, rows: int, inputs: int, outputs: int, trained: bool) -> None:
        """Add the product of activations with weights."""
        product = 2 * rows * inputs * outputs
        self.forward += product
        self.backward += product * (int(self.flows) + int(trained))

    def dense(self, layer: keras.layers.Dense, rows: int) -> None:
        """Add a Dense layer; an adapter (LoRA) costs the gradient of the whole kernel in Keras."""
        inputs = layer.input_spec.axes[-1]
        trained = is_trained(layer)
        self.weights(rows, inputs, layer.units, trained)
        if getattr(layer, "lora_enabled", False):
            product = 2 * inputs * layer.lora_rank * layer.units
            self.forward += product
            self.backward += 2 * product
        self.flows = self.flows or trained

    def attention(
        self,
        layer: GroupedQueryAttention,
        batch: int,
        length: int,
        context: int | None = None,
        context_flows: bool = False,
    ) -> None:
        """Add attention: its projections, and both products over all pairs of tokens.

        Args:
            layer: The layer.
            batch: Sequences.
            length: Tokens of each that look.
            context: Tokens of each that are looked at, where they are others.
            context_flows: Whether a gradient has to reach those.
        """
        seen = length if context is None else context
        seen_flows = self.flows if context is None else context_flows
        query = self._projected(layer.q_proj, layer.q_norm, batch * length, self.flows)
        key = self._projected(layer.k_proj, layer.k_norm, batch * seen, seen_flows)
        value = self._projected(layer.v_proj, None, batch * seen, seen_flows)
        pairs = 2 * batch * layer.num_heads * length * seen * layer.head_dim
        self.forward += 2 * pairs
        # The gradient of the attention weights, of queries, of keys and of values.
        self.backward += pairs * sum((query or key, query, key, value))
        self.flows = query or key or value
        self.dense(layer.o_proj, batch * length)

    def _projected(self, projection, norm, rows, flows) -> bool:
        """Add a projection; return whether a gradient has to reach its output."""
        self.flows = flows
        self.dense(projection, rows)
        return self.flows or (norm is not None and is_trained(norm))

    def block(
        self,
        block: keras.layers.Layer,
        batch: int,
        length: int,
        context: int = 0,
        context_flows: bool = False,
    ) -> None:
        """Add an encoder's or a decoder's block; see `attention` for the arguments."""
        # Norms have no products, but a gradient has to reach what is trained of them. The residual
        # stream carries it past what is not.
        first = block.norm1 if hasattr(block, "norm1") else block.input_norm
        second = block.norm2 if hasattr(block, "norm2") else block.post_attention_norm
        scale, cross = getattr(block, "ls1", None), getattr(block, "cross_block", None)
        before = self.flows
        self.flows = before or is_trained(first)
        self.attention(block.attention, batch, length)
        self.flows = self.flows or before or (scale is not None and is_trained(scale))
        if cross is not None and context:
            before = self.flows
            self.flows = before or is_trained(cross.norm)
            self.attention(cross.attention, batch, length, context, context_flows)
            self.flows = self.flows or before or cross.gate.trainable
        before = self.flows
        self.flows = before or is_trained(second)
        self.mlp(block.mlp, batch * length)
        self.flows = self.flows or is_trained(block)

    def mlp(self, mlp: keras.layers.Layer, rows: int) -> None:
        """Add an `MLP` or a `SwiGLU`."""
        is_plain, before = hasattr(mlp, "fc1"), self.flows
        after = before
        for layer in [mlp.fc1] if is_plain else [mlp.gate_proj, mlp.up_proj]:
            self.flows = before
            self.dense(layer, rows)
            after = after or self.flows
        self.flows = after
        self.dense(mlp.fc2 if is_plain else mlp.down_proj, rows)

    def resampler(self, layer: VisionResampler, batch: int, tokens: int, width: int) -> None:
        """Add a resampler of `batch` images of so many tokens of this width."""
        if layer.mode == "avgpool":
            self._add_pooling(layer, batch, tokens, width)
            return
        context_flows, self.flows = self.flows, layer.queries.trainable
        for block in layer.blocks:
            before = self.flows
            self.flows = before or is_trained(block.query_norm)
            seen_flows = context_flows or is_trained(block.token_norm)
            self.attention(block.attention, batch, layer.num_tokens, tokens, seen_flows)
            before = self.flows or before
            self.flows = before or is_trained(block.mlp_norm)
            self.mlp(block.mlp, batch * layer.num_tokens)
            self.flows = self.flows or before
        self.flows = self.flows or is_trained(layer.norm)

    def _add_pooling(self, layer, batch, tokens, width):
        # Along the columns, then along the rows of the means.
        side, coarse = math.isqrt(tokens), math.isqrt(layer.num_tokens)
        pooled = 2 * batch * width * (coarse * side * side + coarse * coarse * side)
        self.forward += pooled
        self.backward += pooled * int(self.flows)

    def compressor(self, layer: VisionTokenCompressor, batch: int, tokens: int) -> None:
        """Add a compressor of `batch` images of so many tokens."""
        context_flows, self.flows = self.flows, layer.queries.trainable
        self.attention(layer.attention, batch, layer.num_queries, tokens, context_flows)
        self.flows = self.flows or is_trained(layer)


def is_trained(layer) -> bool:
    """Tell whether any weight of a layer is trained."""
    return bool(layer.trainable_variables)
