"""How many floating-point operations a training step takes, counted from a model's layers."""

from collections.abc import Mapping

import keras

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.training.batch_sizes import batch_sizes


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
        trained = _is_trained(layer)
        self.weights(rows, inputs, layer.units, trained)
        if getattr(layer, "lora_enabled", False):
            product = 2 * inputs * layer.lora_rank * layer.units
            self.forward += product
            self.backward += 2 * product
        self.flows = self.flows or trained

    def attention(self, layer: GroupedQueryAttention, batch: int, length: int) -> None:
        """Add self-attention: its projections, and both products over all pairs of tokens."""
        rows, before = batch * length, self.flows
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
            after, self.flows = self.flows, before
            self.dense(projection, rows)
            self.flows = self.flows or after
        pairs = 4 * batch * layer.num_heads * length**2 * layer.head_dim
        self.forward += pairs
        self.backward += 2 * pairs * int(self.flows)
        self.dense(layer.o_proj, rows)

    def block(self, block: keras.layers.Layer, batch: int, length: int) -> None:
        """Add an encoder's or a decoder's block."""
        mlp, before = block.mlp, self.flows
        self.attention(block.attention, batch, length)
        # Norms have no products, but a gradient has to reach what is trained of them.
        self.flows = before or bool(block.trainable_variables)
        first = [mlp.fc1] if hasattr(mlp, "fc1") else [mlp.gate_proj, mlp.up_proj]
        for layer in first:
            self.dense(layer, batch * length)
        self.dense(mlp.fc2 if hasattr(mlp, "fc2") else mlp.down_proj, batch * length)


def model_flops(model, inputs: Mapping) -> int:
    """Return the floating-point operations of one training step, forward and backward.

    Only matrix products are counted, as in appendix B of PaLM (https://arxiv.org/abs/2204.02311):
    attention over all pairs of tokens of a row, also those that a mask hides, and the head at every
    position. Frozen parts have no weight gradients, and none at all where nothing trained lies
    before them. What rematerialisation computes again does not count, so that the operations per
    second give the model's utilisation (MFU), not the hardware's.

    Args:
        model: A `VisionLanguageModel`, or one of `planned_models`; also `without_weights`.
        inputs: The arrays of a batch or their shapes: `text_tokens` [B, S] and, where there are
            images, `images` [B, I, H, W, 3] or [B, H, W, 3]. Other keys are not read.
    """
    passes = step_products(model, inputs)
    return passes.forward + passes.backward


def step_products(model, inputs: Mapping) -> MatrixProducts:
    """Return `model_flops` by passes."""
    sizes = batch_sizes(model, inputs)
    vision = MatrixProducts()
    if sizes.images:
        _add_vision(vision, model, sizes)
    decoder = model.language_decoder
    head = decoder.token_embedding
    table, reverse = _embedding_trained(head)
    text = MatrixProducts(flows=vision.flows or table)
    for block in decoder.blocks:
        text.block(block, sizes.rows, sizes.length)
    text.flows = text.flows or _is_trained(decoder.norm)
    rows = sizes.rows * sizes.length
    text.weights(rows, decoder.hidden_dim, decoder.vocab_size, reverse)
    text.forward += vision.forward
    text.backward += vision.backward
    return text


def _add_vision(passes, model, sizes):
    encoder = model.vision_encoder
    rows = sizes.images * sizes.patches
    passes.dense(encoder.patch_embedding.patch_projection, rows)
    passes.flows = _is_trained(encoder.patch_embedding)
    for block in encoder.blocks:
        passes.block(block, sizes.images, sizes.vision_length)
    passes.flows = passes.flows or _is_trained(encoder)
    for layer in model.modality_projection._flatten_layers():
        if isinstance(layer, keras.layers.Dense):
            passes.dense(layer, sizes.images * sizes.image_tokens)
    passes.flows = passes.flows or _is_trained(model.modality_projection)


def _is_trained(layer):
    return bool(layer.trainable_variables)


def _embedding_trained(embedding):
    """Return whether the table of a tied or untied embedding is trained, and its head's."""
    trained = {id(v) for v in embedding.trainable_variables}
    table = id(embedding.embeddings) in trained
    return table, table if embedding.tie_weights else id(embedding.reverse_embeddings) in trained
