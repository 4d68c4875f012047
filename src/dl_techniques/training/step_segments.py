"""The segments of a vision-language model's training step, in the order of its forward pass."""

from dl_techniques.training.activation_memory import (
    Numerics,
    Segment,
    block_segment,
    head_segment,
    item_bytes,
)
from dl_techniques.training.batch_sizes import BatchSizes
from dl_techniques.training.planned_layout import PlannedLayout


class StepSegments:
    """Makes the segments one after the other.

    Args:
        model: A model of the shape of `Skeleton`, weights or not.
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
        self.flows = False
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

    def _add_blocks(self, part, rows, length):
        for block in part.blocks:
            segment = block_segment(block, rows, length, self.flows, part.remat, self.how)
            self._add(segment, block.weights)

    def _add_vision(self):
        sizes, item = self.sizes, self.how.item
        encoder, projection = self.model.vision_encoder, self.model.modality_projection
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
        # Each matrix keeps its input; the last one's output joins the decoder's sequence.
        kept = sum(
            sizes.images * sizes.image_tokens * sum(v.shape) * item
            for v in projection.weights
            if len(v.shape) == 2
        )
        trained = any(v.trainable for v in projection.weights)
        self._add(Segment(kept * int(trained or self.flows)), projection.weights)

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
        self._add_blocks(decoder, sizes.rows, sizes.length)
        head = table if embedding.tie_weights else [embedding.reverse_embeddings]
        segment = head_segment(decoder, sizes, self.flows, self.how)
        self._add(segment, [*decoder.norm.weights, *head])
