"""VisionLanguageModel: vision encoder -> projection -> language decoder, as one Keras model."""

import copy

from keras import ops

from dl_techniques.checkpoints.backbones import from_backbones
from dl_techniques.checkpoints.presets import from_preset, push_to_hub, save_to_preset
from dl_techniques.generation.engine import Engine
from dl_techniques.generation.generate import generate
from dl_techniques.generation.scoring import score
from dl_techniques.layers.configured_layer import require_floats
from dl_techniques.layers.modality_projection import ModalityProjection
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer
from dl_techniques.models.batch_checks import BatchChecks
from dl_techniques.models.contrast import outputs_with_contrast
from dl_techniques.models.fusion import (
    as_image_sequence,
    misplaced,
    placeholder_fusion,
    prefix_fusion,
)
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.models.trained_model import TrainedModel


class VisionLanguageModel(TrainedModel):
    """Answers text about images.

    A family is a subclass that names its layers (`vision_class`, `projection_class`).

    Args:
        vision_config: Keyword arguments of `vision_class`, here `SigLIPVisionTransformer`.
        language_config: Keyword arguments of `LanguageDecoder` but `vocab_size`.
        projection_config: Keyword arguments of `projection_class`, here `ModalityProjection`.
        vocab_size: Rows of the embedding table.
        fusion: "placeholder": image embeddings replace the ids `image_token_id`; "prefix": they
            come before the text. Default: "placeholder" when `image_token_id` is given.
        image_token_id: The placeholder's id.
        bidirectional_images: Whether the tokens of an image see their whole image.

    Call argument `inputs`: int32[B, S] text tokens, or a dict:
        text_tokens: int32[B, S].
        images: float[B, I, H, W, 3] or float[B, H, W, 3]; may be absent.
        vision_embeds: float[B, I, T, D], what `encode_vision` returned for the images; in their
            place.
        num_images: int32[B], how many of the I are real; default: all.
        attention_mask: bool[B, S], False = padding, on either side.
        segment_ids, positions: int32[B, S], for packed rows (placeholder fusion only).
        turn_ids: int32[B, S], k > 0 for tokens that only turn k sees: several questions about one
            image, each answered as if it were alone (`VQADataProcessor.create_dataset`).
        source_ids: int32[B, S], k for tokens of the k-th of `source_names`, else 0; a training step
            tells their losses apart, the logits do not depend on them.

    Attributes:
        processor: Turns texts and messages into arrays and back (`VQADataProcessor`), or None.
        vision_cache: Keeps embeddings of images between calls of `generate` (`VisionCache`), or
            None.
        stop_ids: End tokens that a checkpoint's configuration names.
        training_data: What the weights learned from, one sentence for the model card, or None.
        results: Scores by name, for the model card, or None.
        vision_class, projection_class: Of the class: the layers of `vision_encoder` and of
            `modality_projection`, which is all that lies between encoder and decoder.
        presets: Of the class: the named configurations of `from_preset`.
        public_weights: Of the class: where weights for them are published.

    Returns:
        float[B, S, vocab_size] logits; with prefix fusion float[B, I * tokens_per_image + S, ...].

    Raises:
        ValueError: if an id is out of range, or a row's placeholders do not match its images;
            checked on the host, before a compiled step.
    """

    vision_class: type = SigLIPVisionTransformer
    projection_class: type = ModalityProjection
    presets: dict[str, dict] = {}
    public_weights: dict[str, str] = {}

    def __init__(
        self,
        vision_config: dict,
        language_config: dict,
        projection_config: dict,
        vocab_size: int = 32000,
        fusion: str | None = None,
        image_token_id: int | None = None,
        bidirectional_images: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fusion = self._checked_fusion(fusion, image_token_id)
        if image_token_id is not None and not 0 <= image_token_id < vocab_size:
            raise ValueError(
                f"image_token_id={image_token_id} must lie in [0, vocab_size={vocab_size})."
            )
        self.vision_config = dict(vision_config)
        self.language_config = dict(language_config)
        self.projection_config = dict(projection_config)
        self.vocab_size = vocab_size
        self.image_token_id = image_token_id
        self.bidirectional_images = bidirectional_images
        self.vision_encoder = self.vision_class(
            **vision_config, name="vision_encoder", dtype=self.dtype_policy
        )
        self.modality_projection = self.projection_class(
            **projection_config, name="modality_projection", dtype=self.dtype_policy
        )
        self.language_decoder = LanguageDecoder(
            vocab_size, **language_config, name="language_decoder", dtype=self.dtype_policy
        )
        self.processor = None
        self.vision_cache = None
        self.stop_ids = ()
        self.training_data = None
        self.results = None
        self._build_parts()

    @staticmethod
    def _checked_fusion(fusion, image_token_id) -> str:
        fusion = fusion or ("prefix" if image_token_id is None else "placeholder")
        if fusion not in ("placeholder", "prefix"):
            raise ValueError(f"fusion={fusion!r} must be 'placeholder' or 'prefix'.")
        if (fusion == "placeholder") != (image_token_id is not None):
            raise ValueError(
                "Placeholder fusion needs image_token_id and prefix fusion has none; got "
                f"fusion={fusion!r}, image_token_id={image_token_id}."
            )
        return fusion

    def _build_parts(self):
        if self.modality_projection.output_dim != self.language_decoder.hidden_dim:
            raise ValueError(
                f"The projection's output_dim={self.modality_projection.output_dim} must equal "
                f"the decoder's hidden_dim={self.language_decoder.hidden_dim}."
            )
        images_shape = (None, *self.image_size, 3)
        tokens_shape = self.vision_encoder.compute_output_shape(images_shape)
        self.vision_encoder.build(images_shape)
        self.modality_projection.build(tokens_shape)
        self.language_decoder.build((None, None))
        self.tokens_per_image = self.count_image_tokens(*self.image_size)
        self.batch_checks = self._make_batch_checks()
        self.built = True

    def _make_batch_checks(self) -> BatchChecks:
        return BatchChecks(self.vocab_size, self.image_token_id, self.count_image_tokens)

    @property
    def image_mark_ids(self) -> tuple[int, ...]:
        """The ids that show, where they stand, that a document has an image."""
        return () if self.image_token_id is None else (self.image_token_id,)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the vision encoder was made for."""
        size = self.vision_encoder.img_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def build(self, input_shape=None):
        """Do nothing: the parts are built by the constructor."""

    def encode_vision(self, images, training=None):
        """Return float[B, T, hidden_dim] for float[B, H, W, 3], [B, I, T, ...] for 5 dimensions."""
        shape = ops.shape(images)
        flat = ops.reshape(images, (-1, *shape[-3:])) if len(shape) == 5 else images
        tokens = self.modality_projection(self.vision_encoder(flat, training=training))
        if len(shape) == 4:
            return tokens
        return ops.reshape(tokens, (shape[0], shape[1], *ops.shape(tokens)[1:]))

    def with_vision_embeds(self, inputs: dict, training=None) -> dict:
        """Return the inputs with `vision_embeds` in place of `images`; None without images."""
        images, vision = inputs.get("images"), inputs.get("vision_embeds")
        if images is not None and images.shape[1] != 0:
            vision = self.encode_vision(as_image_sequence(images), training=training)
        return {**inputs, "images": None, "vision_embeds": vision}

    def count_image_tokens(self, height: int, width: int) -> int:
        """Return how many decoder tokens one image of this size (in pixels) becomes."""
        tokens = self.vision_encoder.compute_output_shape((None, height, width, 3))
        return self.modality_projection.compute_output_shape(tokens)[1]

    def embed(self, inputs, training=None) -> dict:
        """Return the decoder's call arguments: embeddings with the images in their places.

        Rows that the host would have refused (see `BatchChecks`) become NaN.
        """
        text = ops.cast(inputs["text_tokens"], "int32")
        num_images = inputs.get("num_images")
        fused = {
            "inputs": self.language_decoder.token_embedding(text),
            "attention_mask": inputs.get("attention_mask"),
            "segment_ids": inputs.get("segment_ids"),
            "positions": inputs.get("positions"),
            "turn_ids": inputs.get("turn_ids"),
        }
        vision, slots, tokens = self.with_vision_embeds(inputs, training)["vision_embeds"], 0, 0
        if vision is not None:
            slots, tokens = ops.shape(vision)[1:3]
        wrong = ops.any(ops.logical_or(text < 0, text >= self.vocab_size), axis=1)
        if self.fusion == "placeholder":
            is_placeholder = ops.equal(text, self.image_token_id)
            wrong = ops.logical_or(wrong, misplaced(is_placeholder, tokens, num_images, slots))
            if vision is not None:
                fused = placeholder_fusion(fused, vision, is_placeholder, self.bidirectional_images)
        elif vision is not None:
            fused = prefix_fusion(fused, vision, num_images)
        wrong = ops.reshape(wrong, (-1, 1, 1))
        return {**fused, "inputs": ops.where(wrong, float("nan"), fused["inputs"])}

    def call(self, inputs, training=None):
        if not isinstance(inputs, dict):
            inputs = {"text_tokens": inputs}
        self.batch_checks.check_if_concrete(inputs)
        if self.gives_contrast:
            return outputs_with_contrast(self, inputs, training)
        return self.decode(inputs, training)

    def compute_output_shape(self, inputs_shape):
        """Return the shape of the logits for the shapes of a call's inputs."""
        shapes = inputs_shape if isinstance(inputs_shape, dict) else {"text_tokens": inputs_shape}
        batch, length = shapes["text_tokens"]
        images, vision = shapes.get("images"), shapes.get("vision_embeds")
        if images is not None:
            known = None not in images[-3:-1]
            tokens = self.count_image_tokens(*images[-3:-1]) if known else None
            vision = (batch, images[1] if len(images) == 5 else 1, tokens)
        if self.fusion == "prefix" and vision is not None:
            counts = (length, *vision[1:3])
            length = None if None in counts else length + vision[1] * vision[2]
        return batch, length, self.vocab_size

    def decode(self, inputs, training=None):
        """Return the logits of inputs; in a step with a chunked loss, the states before them."""
        return self.language_decoder(
            **self.embed(inputs, training), return_hidden=self.gives_states, training=training
        )

    @classmethod
    def create(cls, name: str, **changes) -> "VisionLanguageModel":
        """Return a new model with random weights.

        Args:
            name: A key of `presets`.
            **changes: Constructor arguments that replace the configuration's.

        Raises:
            ValueError: if the name is unknown.
        """
        if name not in cls.presets:
            raise ValueError(f"Unknown model {name!r}: choose from {sorted(cls.presets)}.")
        return cls(**{**copy.deepcopy(cls.presets[name]), **changes})

    # Methods that live with what they run.
    generate = generate
    score = score
    from_preset = classmethod(from_preset)
    from_backbones = classmethod(from_backbones)
    save_to_preset = save_to_preset
    push_to_hub = push_to_hub

    def generation_engine(self) -> Engine:
        """Return what runs this model's compiled programs of generation."""
        if "_generation_engine" not in self.__dict__:
            self.__dict__["_generation_engine"] = Engine(self)
        return self.__dict__["_generation_engine"]

    def generation_stats(self) -> dict[str, float]:
        """Return counts, times in s and tokens/s of generation so far, and its compilations."""
        return self.generation_engine().statistics.report()

    def arguments(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "vision_config": self.vision_config,
            "language_config": self.language_config,
            "projection_config": self.projection_config,
            "vocab_size": self.vocab_size,
            "fusion": self.fusion,
            "image_token_id": self.image_token_id,
            "bidirectional_images": self.bidirectional_images,
        }

    def get_config(self):
        """Return the constructor's arguments, and those of every Keras model.

        Raises:
            ValueError: if a part was quantized, see `require_floats`.
        """
        require_floats(self)
        return {**super().get_config(), **self.arguments()}
