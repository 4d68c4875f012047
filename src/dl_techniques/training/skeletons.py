"""Models without weights, of any size, to plan training with."""

import contextlib
import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import keras

from dl_techniques.layers.modality_projection import ModalityProjection
from dl_techniques.layers.pixel_shuffle import PixelShuffle
from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.models.model_size import without_weights
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS

PARTS = ("vision_encoder", "modality_projection", "language_decoder")

_QWEN2_72B = {
    "hidden_dim": 8192,
    "num_layers": 80,
    "num_heads": 64,
    "num_kv_heads": 8,
    "mlp_dim": 29568,
    "rope_theta": 1e6,
    "use_qkv_bias": True,
    "norm_epsilon": 1e-6,
    "max_positions": 32768,
    "tie_embeddings": False,
}
_INTERNVIT_6B = {
    "img_size": 448,
    "patch_size": 14,
    "embed_dim": 3200,
    "depth": 45,
    "num_heads": 25,
    "class_token": True,
    "activation": "gelu",
    "norm_type": "rms",
    "use_qkv_bias": False,
    "qk_norm": "width",
    "layer_scale": 0.1,
    "use_final_norm": False,
    "drop_class_token": True,
}
# Sizes of models that can be planned but not made here yet: NVLM-D-72B and its decoder.
LARGE_CONFIGS = {
    "qwen2_72b": {"language_config": _QWEN2_72B, "vocab_size": 152064},
    "nvlm_d_72b": {
        "vision_config": _INTERNVIT_6B,
        "language_config": _QWEN2_72B,
        "projection_config": {
            "input_dim": 3200,
            "output_dim": 8192,
            "scale_factor": 2,
            "mlp_dim": 29568,
        },
        "vocab_size": 152064,
        "image_token_id": 151652,
    },
}


def model_config(model: str | dict) -> dict:
    """Return a model's sizes: `language_config`, `vocab_size` and, with images, the other two.

    Args:
        model: A name in `NANOVLM_CONFIGS` or `LARGE_CONFIGS`; a training recipe's name; a JSON file
            of sizes or of a run's settings; or such a dict.

    Raises:
        ValueError: if there is no such model, or it lacks sizes.
    """
    config = _named(model) if isinstance(model, str) else dict(model)
    name = config.get("model")
    if name is not None and name != "custom":
        config = _named(name)
    missing = [key for key in ("language_config", "vocab_size") if not config.get(key)]
    if missing:
        raise ValueError(f"The sizes of the model {name or model!r} lack {missing}.")
    keys = ("vision_config", "projection_config", "image_token_id")
    sizes = {key: config[key] for key in keys if config.get(key) is not None}
    if ("vision_config" in sizes) != ("projection_config" in sizes):
        raise ValueError("vision_config and projection_config belong together: give both.")
    return {**sizes, **{key: config[key] for key in ("language_config", "vocab_size")}}


def _named(name):
    from dl_techniques.training.recipes import RECIPES, get_recipe

    named = {**NANOVLM_CONFIGS, **LARGE_CONFIGS}
    if name in named:
        return copy.deepcopy(named[name])
    if name in RECIPES:
        return get_recipe(name)
    if name.endswith(".json"):
        return json.loads(Path(name).read_text())
    raise ValueError(
        f"Unknown model {name!r}: choose from {', '.join([*named, *RECIPES])}, or name a JSON file."
    )


def make_skeleton(model: str | dict, precision: str = "float32", remat: bool | None = None):
    """Return a `Skeleton` of a model.

    Args:
        model: See `model_config`.
        precision: The dtype policy.
        remat: Whether blocks are computed again in the backward pass; None: as the sizes say.
    """
    config = model_config(model)
    if remat is not None:
        for part in ("vision_config", "language_config"):
            if part in config:
                config[part] = {**config[part], "remat": remat}
    return without_values(lambda: Skeleton(**config, dtype=precision))


def without_values(create: Callable):
    """Return what `create` makes `without_weights`, and without placeholders for them.

    On PyTorch and TensorFlow Keras computes the value of a variable that has none wherever it is
    looked at, which layers and optimizers do: all 300 GB of the largest model.
    """

    def on_paper():
        with _symbolic():
            return create()

    return without_weights(on_paper)


def _symbolic():
    """Return a context in which arrays have shapes alone."""
    backend = keras.backend.backend()
    if backend == "torch":
        return keras.device("meta")
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.Graph().as_default()
    return contextlib.nullcontext()


class Skeleton(keras.Model):
    """The parts of a vision-language model, or a decoder alone, with the paths they have there.

    More layers fit in than in a `VisionLanguageModel`: `vision_config` may be of any
    `VisionTransformer`, and `projection_config` may have an `mlp_dim` (see `TwoLayerProjection`).
    It is only looked at, not run.

    Args:
        language_config, vocab_size, vision_config, projection_config, image_token_id: See
            `VisionLanguageModel`; without a `vision_config` there are no images.
    """

    def __init__(
        self,
        language_config: dict,
        vocab_size: int,
        vision_config: dict | None = None,
        projection_config: dict | None = None,
        image_token_id: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fusion = "prefix" if image_token_id is None else "placeholder"
        self.vision_encoder = self.modality_projection = None
        if vision_config is not None:
            self._add_vision(vision_config, projection_config)
        self.language_decoder = LanguageDecoder(
            vocab_size, **language_config, name="language_decoder", dtype=self.dtype_policy
        )
        self.language_decoder.build((None, None))
        self.built = True

    def _add_vision(self, vision_config, projection_config):
        siglip = set(inspect.signature(SigLIPVisionTransformer).parameters)
        encoder = SigLIPVisionTransformer if set(vision_config) <= siglip else VisionTransformer
        projection = TwoLayerProjection if "mlp_dim" in projection_config else ModalityProjection
        self.vision_encoder = encoder(
            **vision_config, name="vision_encoder", dtype=self.dtype_policy
        )
        self.modality_projection = projection(
            **projection_config, name="modality_projection", dtype=self.dtype_policy
        )
        images_shape = (None, *self.image_size, 3)
        self.vision_encoder.build(images_shape)
        self.modality_projection.build(self.vision_encoder.compute_output_shape(images_shape))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the vision encoder is made for."""
        size = self.vision_encoder.img_size
        return (size, size) if isinstance(size, int) else tuple(size)


class TwoLayerProjection(keras.layers.Layer):
    """Pixel shuffle -> LayerNorm -> Dense -> GELU -> Dense without biases, as NVLM-D has it.

    Args:
        input_dim, output_dim, scale_factor: See `ModalityProjection`.
        mlp_dim: Width between the Dense layers.
    """

    def __init__(self, input_dim, output_dim, scale_factor, mlp_dim, **kwargs):
        super().__init__(**kwargs)
        self.width = input_dim * scale_factor**2
        policy = self.dtype_policy
        self.pixel_shuffle = PixelShuffle(scale_factor, name="pixel_shuffle", dtype=policy)
        self.layer_norm = keras.layers.LayerNormalization(name="layer_norm", dtype=policy)
        self.fc1 = keras.layers.Dense(mlp_dim, use_bias=False, name="fc1", dtype=policy)
        self.fc2 = keras.layers.Dense(output_dim, use_bias=False, name="fc2", dtype=policy)

    def build(self, x_shape):
        """Create the weights."""
        self.layer_norm.build((None, None, self.width))
        self.fc1.build((None, None, self.width))
        self.fc2.build((None, None, self.fc1.units))

    def compute_output_shape(self, x_shape):
        """Return the shape of the decoder's image tokens."""
        return (*self.pixel_shuffle.compute_output_shape(x_shape)[:2], self.fc2.units)
