"""What the layers between vision encoder and decoder keep for their backward pass."""

import keras

from dl_techniques.layers.vision_resampler import VisionResampler, VisionTokenCompressor
from dl_techniques.training.activation_memory import Numerics, cross_attention_bytes


def part_bytes(
    part: keras.layers.Layer, images: int, tokens: int, width: int, how: Numerics
) -> float:
    """Return the bytes that a part of `projection_parts` keeps.

    Args:
        part: The part.
        images: Images of the batch.
        tokens: Tokens of each before the part.
        width: Their width.
        how: How numbers are stored.
    """
    if isinstance(part, VisionResampler):
        return _resampler_bytes(part, images, tokens, width, how)
    if isinstance(part, VisionTokenCompressor):
        # The tokens as they come, and queries and their sum around the norm.
        numbers = images * (tokens + 3 * part.num_queries) * width
        return numbers * how.item + cross_attention_bytes(
            part.attention, images, part.num_queries, tokens, True, how
        )
    # Each matrix keeps its input; the last one's output joins the decoder's sequence. Of a norm
    # before, the normalised input.
    after = part.compute_output_shape((None, tokens, width))[1]
    matrices = sum(sum(v.shape) for v in part.weights if len(v.shape) == 2)
    opening = 0 if getattr(part, "input_norm", None) is None else 2 * width
    return images * after * (matrices + opening) * how.item


def _resampler_bytes(part, images, tokens, width, how):
    if part.mode == "avgpool":
        return 0.0  # Means keep nothing.
    numbers = 0.0
    for block in part.blocks:
        # The normalised tokens, twice; around the queries' norms and sums; fc1 and its GELU.
        numbers += images * (2 * tokens + 8 * part.num_tokens) * width
        numbers += images * part.num_tokens * 3 * block.mlp.mlp_dim
    kept = numbers * how.item
    for block in part.blocks:
        kept += cross_attention_bytes(block.attention, images, part.num_tokens, tokens, True, how)
    return kept
