"""The segments of a vision-language model's training step, in the order of its forward pass."""

from dl_techniques.training.activation_memory import (
    Numerics,
    Segment,
    block_segment,
    head_segment,
    item_bytes,
)
from dl_techniques.training.batch_sizes import BatchSizes, projection_parts
from dl_techniques.training.connector_memory import part_bytes
from dl_techniques.training.planned_layout import PlannedLayout


class StepSegments:
    """Makes the segments one after the other.

    Args:
        model: A `VisionLanguageModel` or a `DecoderAlone`, weights or not.
        sizes: The batch of one device.
        layout: What devices share.
        how: How numbers are stored.
    """

    def __init__(
        self,
        model,
        sizes: BatchSizes,
        layout: PlannedLayout,
        how: Numerics,
    ):
        self.model = model
        self.sizes = sizes
        self.layout = layout
        self.how = how
        self.flows = self.context_flows = False
        self.segments: list[Segment] = []

    def all(self) -> list[Segment]:
        """Return the segments of vision encoder, projection, decoder and head."""
        if self.sizes.images:
            self._add_vision()
        self._add_decoder()
        return self.segments

    def _add(self, segment, variables, gradients=None):
        """Add a segment, with what its weights cost, and let the gradient flow behind it."""
        trained = [v for v in variables if v.trainable]
        segment.gradients += self.layout.bytes(trained) if gradients is None else gradients
        reached = self.flows or bool(trained)
        if variables and item_bytes(variables[0].dtype) != self.how.item and reached:
            # Weights are cast for the products, and kept for those of the backward pass.
            held = self.layout.bytes(variables)
            segment.kept += held * self.how.item / item_bytes(variables[0].dtype)
        if self.layout.gathers:
            segment.inside += self.layout.gathered_bytes(variables)
            segment.inside += self.layout.gathered_bytes(trained)
        self.segments.append(segment)
        self.flows = reached

    def _add_blocks(self, part, rows, length, context=0):
        for block in part.blocks:
            crosses = getattr(block, "cross_block", None) is not None
            flows = self.flows or (crosses and self.context_flows)
            seen = context if crosses else 0
            segment = block_segment(block, rows, length, flows, part.remat, self.how, seen)
            self._add(segment, block.weights)
            self.flows = self.flows or flows

    def _add_vision(self):
        sizes, item = self.sizes, self.how.item
        encoder = self.model.vision_encoder
        rows = sizes.images * sizes.vision_length
        # The patches as rows of pixels, if their matrix is trained, and its product.
        embedding = encoder.patch_embedding
        trained = any(v.trainable for v in embedding.weights)
        pixels = sizes.images * sizes.pixels * item * int(trained)
        tokens = rows * encoder.embed_dim * item
        self._add(Segment(pixels + tokens * int(trained), pixels), embedding.weights)
        self._add_blocks(encoder, sizes.images, sizes.vision_length)
        inside = {id(v) for part in (embedding, *encoder.blocks) for v in part.weights}
        rest = [v for v in encoder.weights if id(v) not in inside]
        reached = self.flows or any(v.trainable for v in rest)
        self._add(Segment(3 * tokens * int(bool(rest) and reached)), rest)
        for part, length, width in projection_parts(self.model, sizes):
            trained = any(v.trainable for v in part.weights)
            kept = part_bytes(part, sizes.images, length, width, self.how)
            self._add(Segment(kept * int(trained or self.flows)), part.weights)
        self.context_flows = self.flows
        if sizes.context:
            # The images wait for the blocks that read them, and their gradients add up.
            context = sizes.rows * sizes.context * self.model.language_decoder.hidden_dim * item
            self._add(Segment(context, context * int(self.flows)), [])
        if getattr(self.model, "architecture", None) == "cross_attention":
            self.flows = False  # No image is in the sequence.

    def _add_decoder(self):
        decoder, sizes = self.model.language_decoder, self.sizes
        embedding = decoder.token_embedding
        table = [embedding.embeddings]
        trained = embedding.embeddings.trainable
        states = sizes.tokens * decoder.hidden_dim * self.how.item
        # A tied table has two gradients, of which the head's is there first.
        size = self.layout.gathered_bytes(table)
        at_lookup = size * int(trained and embedding.tie_weights)
        first = 0 if embedding.tie_weights else None
        self._add(Segment(2 * states, at_lookup), table, first)
        self._add_blocks(decoder, sizes.rows, sizes.length, sizes.context)
        head = table if embedding.tie_weights else [embedding.reverse_embeddings]
        segment = head_segment(decoder, sizes, self.flows, self.how)
        self._add(segment, [*decoder.norm.weights, *head])
