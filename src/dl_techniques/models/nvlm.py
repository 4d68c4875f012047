"""NVLM: tiles with tags, read in the sequence (D), by gated cross-attention (X), or both (H).

The 72B configurations are the paper's; of the guide's ladder the true counts are given, which
differ from the labels. Counts are exact and tested.

Reference: https://arxiv.org/abs/2409.11402. It does not give the insides of the cross-attention of
X and H; here they are `GatedCrossAttentionBlock`.
"""

import keras
from keras import ops

from dl_techniques.layers.configured_layer import register
from dl_techniques.layers.vision_connector import VisionConnector
from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.models import tile_context
from dl_techniques.models.batch_checks import BatchChecks, TaggedBatchChecks
from dl_techniques.models.nvlm_configs import NVLM_CONFIGS
from dl_techniques.models.vision_language_model import VisionLanguageModel

__all__ = ["ARCHITECTURES", "NVLM", "NVLM_CONFIGS"]

ARCHITECTURES = ("decoder", "cross_attention", "hybrid")


@register
class NVLM(VisionLanguageModel):
    """Vision encoder -> (pixel shuffle ->) (compressor ->) projector -> decoder.

    "decoder" (D): the tokens of all images replace their placeholders. "cross_attention" (X): they
    are keys and values of gated cross-attention; the text has a tag for each image, which sees that
    image alone, while what follows sees all images before it. "hybrid" (H): an image whose
    placeholders follow right behind its tag (the thumbnail) is in the sequence, all others are read
    by cross-attention, each with the text embedding of its tag before its tokens.

    Args:
        architecture: One of `ARCHITECTURES`.
        vision_config: Keyword arguments of `VisionTransformer`.
        language_config: Keyword arguments of `LanguageDecoder` but `vocab_size`;
            `cross_attention_every` is for X and H, which need it.
        projector_config: Keyword arguments of `VisionProjector`.
        scale_factor: Of `PixelShuffle`; None for none.
        compressor_config: Keyword arguments of `VisionTokenCompressor`; None for none.
        vocab_size: Rows of the embedding table.
        image_token_id: The placeholder's id; None for X.
        tile_tag_ids: X and H: the ids of tags of one token each, of which the k-th in a row stands
            for its image k. None: every batch with images has `image_tags`.
        bidirectional_images: Whether the tokens of an image in the sequence see their whole image.

    Call argument `inputs`: see `VisionLanguageModel`; X and H also:
        image_tags: int32[B, S], k for the tokens of the tag of image k, else 0; default: by
            `tile_tag_ids`.

    Raises:
        ValueError: for an unknown architecture, or arguments that do not go with it.
    """

    vision_class = VisionTransformer
    projection_class = VisionConnector
    presets = {
        name: {key: value for key, value in config.items() if key != "total_params"}
        for name, config in NVLM_CONFIGS.items()
    }

    def __init__(
        self,
        architecture: str = "decoder",
        *,
        vision_config: dict,
        language_config: dict,
        projector_config: dict,
        scale_factor: int | None = 2,
        compressor_config: dict | None = None,
        vocab_size: int = 32000,
        image_token_id: int | None = None,
        tile_tag_ids: list[int] | None = None,
        bidirectional_images: bool = False,
        **kwargs,
    ):
        _check_architecture(architecture, language_config, image_token_id, tile_tag_ids)
        self.architecture = architecture
        self.projector_config = dict(projector_config)
        self.scale_factor = scale_factor
        self.compressor_config = compressor_config
        self.tile_tag_ids = None if tile_tag_ids is None else list(tile_tag_ids)
        super().__init__(
            vision_config,
            language_config,
            {
                "projector_config": projector_config,
                "compressor_config": compressor_config,
                "scale_factor": scale_factor,
            },
            vocab_size,
            "cross_attention" if architecture == "cross_attention" else "placeholder",
            image_token_id,
            bidirectional_images,
            **kwargs,
        )

    @staticmethod
    def _checked_fusion(fusion, image_token_id):
        return fusion

    def _make_batch_checks(self):
        arguments = (self.vocab_size, self.image_token_id, self.count_image_tokens)
        if self.architecture == "decoder":
            return BatchChecks(*arguments)
        return TaggedBatchChecks(*arguments, tile_tag_ids=self.tile_tag_ids)

    @property
    def image_mark_ids(self) -> tuple[int, ...]:
        """The ids that show, where they stand, that a document has an image."""
        return (*super().image_mark_ids, *(self.tile_tag_ids or ()))

    def embed(self, inputs, training=None) -> dict:
        """Return the decoder's call arguments; see `VisionLanguageModel.embed`.

        X and H add `context` float[B, V, D] and `context_mask` bool[B, 1, S, V].
        """
        inputs = self.with_vision_embeds(inputs, training)
        if self.architecture == "decoder" or inputs["vision_embeds"] is None:
            return super().embed(inputs, training)
        return self._embed_with_context(inputs)

    def _embed_with_context(self, inputs):
        text, vision = ops.cast(inputs["text_tokens"], "int32"), inputs["vision_embeds"]
        embeddings = self.language_decoder.token_embedding(text)
        names = ("attention_mask", "segment_ids", "positions", "turn_ids")
        fused = {name: inputs.get(name) for name in names}
        batch, images, tokens, width = ops.shape(vision)
        vision = ops.cast(vision, embeddings.dtype)
        image_tags = inputs.get("image_tags")
        if image_tags is None:
            image_tags = tile_context.tags_of(text, self.tile_tag_ids)
        tags = tile_context.tags_by_image(ops.cast(image_tags, "int32"), images)
        seen = tile_context.seen_images(tags, inputs.get("segment_ids"))
        context, per_image = vision, tokens
        if self.architecture == "hybrid":
            is_placeholder = ops.equal(text, self.image_token_id)
            in_sequence = tile_context.images_in_sequence(tags, is_placeholder)
            seen = ops.logical_and(seen, ops.expand_dims(ops.logical_not(in_sequence), 1))
            named = tile_context.tag_embeddings(tags, embeddings)
            context, per_image = ops.concatenate([named[:, :, None], vision], axis=2), tokens + 1
            embeddings, fused["image_ids"] = self._spliced(embeddings, vision, tags, is_placeholder)
        context = ops.reshape(context, (batch, images * per_image, width))
        length = ops.shape(text)[1]
        mask = ops.broadcast_to(seen[..., None], (batch, length, images, per_image))
        mask = ops.reshape(mask, (batch, 1, length, images * per_image))
        if vision.shape[1] is None:  # A compiled step may meet a batch without any image.
            context = ops.pad(context, ((0, 0), (0, 1), (0, 0)))
            mask = ops.pad(mask, ((0, 0), (0, 0), (0, 0), (0, 1)))
        wrong = ops.any(ops.logical_or(text < 0, text >= self.vocab_size), axis=1)
        wrong = ops.logical_or(wrong, self._mismatched(inputs, text, image_tags, tags, tokens))
        embeddings = ops.where(ops.reshape(wrong, (-1, 1, 1)), float("nan"), embeddings)
        return {**fused, "inputs": embeddings, "context": context, "context_mask": mask}

    def _spliced(self, embeddings, vision, tags, is_placeholder):
        """Return the embeddings with the images in their places, and `image_ids` or None."""
        batch, images, tokens, width = ops.shape(vision)
        image = tile_context.begun_images(tags)
        place = ops.cumsum(ops.cast(is_placeholder, "int32"), axis=1) - 1
        flat = ops.reshape(vision, (batch, images * tokens, width))
        if vision.shape[1] is None:
            flat = ops.pad(flat, ((0, 0), (0, 1), (0, 0)))
        index = ops.clip((image - 1) * tokens + place % tokens, 0, ops.shape(flat)[1] - 1)
        found = ops.take_along_axis(flat, ops.expand_dims(index, -1), axis=1)
        spliced = ops.where(ops.expand_dims(is_placeholder, -1), found, embeddings)
        image_ids = ops.where(is_placeholder, image, 0) if self.bidirectional_images else None
        return spliced, image_ids

    def _mismatched(self, inputs, text, image_tags, tags, tokens):
        """Return bool[B]: rows that the host would have refused."""
        counts = inputs.get("num_images")
        counts = ops.shape(tags)[2] if counts is None else ops.cast(counts, "int32")
        wrong = ops.not_equal(ops.max(image_tags, axis=1), counts)
        if self.image_token_id is None:
            return wrong
        is_placeholder = ops.equal(text, self.image_token_id)
        placed = ops.sum(ops.cast(is_placeholder, "int32"), axis=1)
        in_sequence = tile_context.images_in_sequence(tags, is_placeholder)
        expected = ops.sum(ops.cast(in_sequence, "int32"), axis=1) * tokens
        return ops.logical_or(wrong, ops.not_equal(placed, expected))

    def call(self, inputs, training=None, return_dict: bool = False):
        """Return logits; with `return_dict` a dict of what lies on the way to them.

        Its keys: `logits` float[B, S, vocab_size], `hidden_states` float[B, S, D] after the last
        norm, `vision_embeds` float[B, I, T, D] or None.
        """
        if not return_dict:
            return super().call(inputs, training=training)
        inputs = inputs if isinstance(inputs, dict) else {"text_tokens": inputs}
        self.batch_checks.check_if_concrete(inputs)
        inputs = self.with_vision_embeds(inputs, training)
        fused = self.embed(inputs, training)
        hidden = self.language_decoder(**fused, return_hidden=True, training=training)
        logits = self.language_decoder.token_embedding(hidden, reverse=True)
        vision = inputs["vision_embeds"]
        return {"logits": logits, "hidden_states": hidden, "vision_embeds": vision}

    def compute_output_spec(self, *args, return_dict: bool = False, **kwargs):
        """Return the symbolic output of a call."""
        if return_dict:  # Traced, as Keras does without `compute_output_shape`.
            return keras.Operation.compute_output_spec(self, *args, return_dict=True, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

    def arguments(self) -> dict:
        """Return the constructor's arguments."""
        names = ("architecture", "vision_config", "language_config", "projector_config")
        names += ("scale_factor", "compressor_config", "vocab_size", "image_token_id")
        names += ("tile_tag_ids", "bidirectional_images")
        return {name: getattr(self, name) for name in names}


def _check_architecture(architecture, language_config, image_token_id, tile_tag_ids):
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} must be one of {list(ARCHITECTURES)}.")
    crosses = language_config.get("cross_attention_every") is not None
    if crosses != (architecture != "decoder"):
        raise ValueError(
            f"architecture={architecture!r} "
            + ("has no" if crosses else "needs language_config's")
            + " cross_attention_every."
        )
    if (image_token_id is None) != (architecture == "cross_attention"):
        raise ValueError(
            f"architecture={architecture!r} "
            + ("needs image_token_id." if image_token_id is None else "has no image_token_id.")
        )
    if architecture == "decoder" and tile_tag_ids is not None:
        raise ValueError("architecture='decoder' has no tile_tag_ids: its tags are plain text.")
