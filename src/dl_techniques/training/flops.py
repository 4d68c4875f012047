"""How many floating-point operations a training step takes, counted from a model's layers."""

from collections.abc import Mapping

import keras

from dl_techniques.layers.vision_resampler import VisionResampler, VisionTokenCompressor
from dl_techniques.training.batch_sizes import batch_sizes, projection_parts
from dl_techniques.training.matrix_products import MatrixProducts, is_trained


def model_flops(model, inputs: Mapping) -> int:
    """Return the floating-point operations of one training step, forward and backward.

    Only matrix products are counted, as in appendix B of PaLM (https://arxiv.org/abs/2204.02311):
    attention over all pairs of tokens of a row, also those that a mask hides, and the head at every
    position. Frozen parts have no weight gradients, and none at all where nothing trained lies
    before them. What rematerialisation computes again does not count, so that the operations per
    second give the model's utilisation (MFU), not the hardware's.

    Args:
        model: A `VisionLanguageModel`, or what `make_skeleton` gives; also `without_weights`.
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
    in_sequence = getattr(model, "architecture", "decoder") != "cross_attention"
    text = MatrixProducts(flows=table or (vision.flows and in_sequence))
    context_flows = vision.flows
    if sizes.tags:  # The means of the tags' embeddings, which stand before the images.
        means = 2 * sizes.rows * sizes.length * sizes.tags * decoder.hidden_dim
        text.forward += means
        text.backward += means * int(table)
        context_flows = context_flows or table
    for block in decoder.blocks:
        text.block(block, sizes.rows, sizes.length, sizes.context, context_flows)
    text.flows = text.flows or is_trained(decoder.norm)
    rows = sizes.rows * sizes.length
    text.weights(rows, decoder.hidden_dim, decoder.vocab_size, reverse)
    text.forward += vision.forward
    text.backward += vision.backward
    return text


def _add_vision(passes, model, sizes):
    encoder = model.vision_encoder
    rows = sizes.images * sizes.patches
    passes.dense(encoder.patch_embedding.patch_projection, rows)
    passes.flows = is_trained(encoder.patch_embedding)
    if encoder.pre_norm is not None:
        passes.flows = passes.flows or is_trained(encoder.pre_norm)
    for block in encoder.blocks:
        passes.block(block, sizes.images, sizes.vision_length)
    if encoder.norm is not None:
        passes.flows = passes.flows or is_trained(encoder.norm)
    _add_projection(passes, model, sizes)
    passes.flows = passes.flows or is_trained(model.modality_projection)


def _add_projection(passes, model, sizes):
    for part, tokens, width in projection_parts(model, sizes):
        if isinstance(part, VisionResampler):
            passes.resampler(part, sizes.images, tokens, width)
        elif isinstance(part, VisionTokenCompressor):
            passes.compressor(part, sizes.images, tokens)
        else:
            # A norm that opens is trained before the first product, others lie behind one.
            opening = getattr(part, "input_norm", None)
            passes.flows = passes.flows or (opening is not None and is_trained(opening))
            for layer in part._flatten_layers():
                if isinstance(layer, keras.layers.Dense):
                    passes.dense(layer, sizes.images * sizes.image_tokens)


def _embedding_trained(embedding):
    """Return whether the table of a tied or untied embedding is trained, and its head's."""
    trained = {id(v) for v in embedding.trainable_variables}
    table = id(embedding.embeddings) in trained
    return table, table if embedding.tie_weights else id(embedding.reverse_embeddings) in trained
