"""What a training step holds beside weights and optimizer: activations and gradients in time.

The step is followed backwards, segment by segment (a block, the embeddings, the head): each
segment keeps tensors from its forward pass until its gradient is computed, needs some more while
that happens, and leaves the gradients of its weights. The peak is the largest sum on this way.

The tensors are those that the chain rule needs, counted in the buffers of steps that XLA compiled:
of each operation its input, or what stands for it (the exponentials of a softmax, the tanh of a
GELU). For transformers alike: Korthikanti et al., https://arxiv.org/abs/2205.05198.
"""

import dataclasses

from dl_techniques.layers.feed_forward import SwiGLU
from dl_techniques.optimization.moments import REDUCED
from dl_techniques.training.batch_sizes import BatchSizes

_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How numbers are stored and split.

    Attributes:
        item: Bytes of an activation.
        keeps_scores: Whether attention holds its [tokens, tokens] weights for the backward pass,
            which flash attention does not.
        remat_saves: Whether what is computed again is computed late. XLA on a CPU drops the
            barriers that should see to it, computes everything again at once, and saves nothing.
        chunk_size: See `NanoVLMLoss`; None: the logits of all tokens exist.
        model_parallel: Devices that share heads, hidden units and vocabulary.
    """

    item: int = _FLOAT32
    keeps_scores: bool = True
    remat_saves: bool = True
    chunk_size: int | None = None
    model_parallel: int = 1


@dataclasses.dataclass
class Segment:
    """A part of the step, in bytes.

    Attributes:
        kept: From its forward pass until its backward pass.
        inside: While its backward pass runs.
        gradients: Of its weights, from then on.
    """

    kept: float = 0.0
    inside: float = 0.0
    gradients: float = 0.0


def peak_bytes(segments: list[Segment]) -> int:
    """Return the most that the segments, in the order of the forward pass, hold at one time."""
    peak = 0.0
    gradients, kept = 0.0, sum(segment.kept for segment in segments)
    for segment in reversed(segments):
        gradients += segment.gradients
        peak = max(peak, kept + segment.inside + gradients)
        kept -= segment.kept
    return round(peak)


def kept_bytes(segments: list[Segment]) -> int:
    """Return what all segments keep together: activations when the backward pass begins."""
    return round(sum(segment.kept for segment in segments))


def block_segment(
    block, rows: int, length: int, flows: bool, remat: bool, how: Numerics, context: int = 0
):
    """Return the segment of an encoder's or a decoder's block.

    Args:
        block: The block.
        rows: Sequences.
        length: Tokens of each.
        flows: Whether a gradient has to reach the block's input.
        remat: Whether only the block's input is kept.
        how: How numbers are stored.
        context: Tokens of each sequence's context, where the block has cross-attention to it.
    """
    trained = bool(block.trainable_variables)
    cross = getattr(block, "cross_block", None) if context else None
    wide = _widest(block, rows, length, max(length, 0 if cross is None else context), how)
    if not (flows or trained):
        return Segment(inside=2 * wide)
    inside = rows * length * _block_numbers(block, trained, how) * how.item
    inside += _score_bytes(block.attention, rows, length, length, how)
    inside += _mask_bytes(block, rows, length, how)
    if cross is not None:
        inside += cross_attention_bytes(cross.attention, rows, length, context, trained, how)
        # The sum of the residual stream, and what the gate multiplies.
        inside += 2 * rows * length * block.hidden_dim * how.item
    if remat and how.remat_saves:
        # The whole inside again, then the gradients on their way back.
        return Segment(rows * length * block.hidden_dim * how.item, inside + 2 * wide)
    return Segment(inside, 2 * wide)


def _block_numbers(block, trained, how):
    """Return how many numbers a block keeps per token, the attention's scores aside."""
    attention, width, parts = block.attention, block.hidden_dim, how.model_parallel
    heads = attention.num_heads * attention.head_dim / parts
    kv_heads = attention.num_kv_heads * attention.head_dim / parts
    hidden = block.mlp.mlp_dim / parts
    swiglu = isinstance(block.mlp, SwiGLU)
    # Both sums of the residual stream; of each norm the normalised input, of a LayerNorm one more.
    numbers = (4 if swiglu or getattr(block, "norm_type", None) == "rms" else 6) * width
    # Query, key, value, and what attention gives.
    explicit = bool(attention.dropout)
    numbers += heads + 2 * (heads if explicit else kv_heads) + heads
    if attention.qk_norm:
        numbers += heads + kv_heads
    # Gate, its sigmoid, silu and up; or fc1 and its tanh.
    numbers += (4 if swiglu else 2) * hidden
    if getattr(block, "ls1", None) is not None:
        numbers += 2 * width
    if trained:
        # The inputs of the matrices: after each norm, and of down_proj or fc2.
        numbers += 2 * width + hidden
    return numbers


def cross_attention_bytes(attention, rows, length, context, trained, how) -> float:
    """Return what attention of `length` tokens to `context` others keeps for the backward pass."""
    heads = attention.num_heads * attention.head_dim / how.model_parallel
    kv_heads = attention.num_kv_heads * attention.head_dim / how.model_parallel
    # The normalised input and the queries, what attention gives; keys and values of the context.
    numbers = length * (attention.hidden_dim * (1 + int(trained)) + 2 * heads)
    numbers += context * 2 * kv_heads
    return rows * numbers * how.item + _score_bytes(attention, rows, length, context, how)


def _score_bytes(attention, rows, length, seen, how):
    """Return the bytes of attention weights: softmax in float32, then as the product takes them."""
    scores = rows * attention.num_heads / how.model_parallel * length * seen
    if attention.dropout:  # Exponentials and what is left of the weights, as the layer does it.
        return scores * (_FLOAT32 + how.item)
    if not how.keeps_scores:
        return 0.0
    return scores * (2 * _FLOAT32 + how.item)


def _mask_bytes(block, rows, length, how):
    """Return the bytes of dropout's masks, a byte a number."""
    if not block.attention.dropout:
        return 0.0
    numbers = block.attention.num_heads * length + block.mlp.mlp_dim
    return rows * length * (numbers / how.model_parallel + block.hidden_dim)


def _widest(block, rows, length, seen, how):
    """Return the bytes of the largest tensor inside of a block."""
    widest = rows * length * block.mlp.mlp_dim / how.model_parallel * how.item
    if how.keeps_scores or block.attention.dropout:
        scores = rows * block.attention.num_heads / how.model_parallel * length * seen
        widest = max(widest, scores * _FLOAT32)
    return widest


def head_segment(decoder, sizes: BatchSizes, flows: bool, how: Numerics) -> Segment:
    """Return the segment of the last norm, the head and the loss."""
    states = sizes.tokens * decoder.hidden_dim * how.item
    vocabulary = decoder.vocab_size / how.model_parallel
    if how.chunk_size is None:
        # Exponentials and gradient in float32, and the gradient as the products take it.
        logits = sizes.tokens * vocabulary * (2 * _FLOAT32 + how.item)
        return Segment(3 * states, logits)
    chunk = min(how.chunk_size, sizes.tokens) * vocabulary
    # Logits, exponentials, the comparison with the targets; the states and their gradient; the sum
    # of the table's gradient.
    table = vocabulary * decoder.hidden_dim * _FLOAT32
    return Segment(5 * states, chunk * (_FLOAT32 + how.item + 1) + table)


def item_bytes(dtype: str) -> int:
    """Return the bytes of a number."""
    return 2 if dtype in REDUCED else 4
