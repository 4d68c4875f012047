"""Models without weights, of any size, to plan training with."""

import contextlib
import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import keras

from dl_techniques.models.families import MODEL_NAMES, family_of, model_arguments, model_class
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.models.model_size import without_weights

PARTS = ("vision_encoder", "modality_projection", "language_decoder")

# Decoders alone that can be planned.
DECODER_CONFIGS = {
    name: {
        "language_config": model_arguments(model)["language_config"],
        "vocab_size": model_arguments(model)["vocab_size"],
    }
    for name, model in (("qwen2_72b", "nvlm_d_72b"), ("qwen2_5_1_5b", "ghostvis_1_5b"))
}


class DecoderAlone(keras.Model):
    """A decoder with the paths that it has in a `VisionLanguageModel`; it is only looked at.

    Args:
        language_config, vocab_size: See `VisionLanguageModel`.
    """

    vision_encoder = modality_projection = None
    fusion = "prefix"

    def __init__(self, language_config: dict, vocab_size: int, **kwargs):
        super().__init__(**kwargs)
        self.language_decoder = LanguageDecoder(
            vocab_size, **language_config, name="language_decoder", dtype=self.dtype_policy
        )
        self.language_decoder.build((None, None))
        self.built = True


def model_config(model: str | dict) -> tuple[type[keras.Model], dict]:
    """Return a model's class and the arguments of its constructor.

    Args:
        model: A name in `MODEL_NAMES` or `DECODER_CONFIGS`; a training recipe's name; a JSON file
            of a constructor's arguments or of a run's settings; or such a dict. Without
            `vision_config` it is a decoder alone.

    Raises:
        ValueError: if there is no such model, or it lacks sizes.
    """
    config = _named(model) if isinstance(model, str) else dict(model)
    name = config.get("model")
    if name is not None and name != "custom":
        model, config = name, _named(name)
    if isinstance(model, str) and model in MODEL_NAMES:
        return model_class(model), config
    given = {key: value for key, value in config.items() if value is not None}
    if "vision_config" not in given and not _projections(given):
        return DecoderAlone, _arguments(DecoderAlone, config, name or model)
    if "vision_config" not in given or not _projections(given):
        raise ValueError(
            "vision_config and projection_config (or projector_config) belong together: give both."
        )
    family = family_of(given)
    return family, _arguments(family, config, name or model)


def _projections(config):
    return {"projection_config", "projector_config"} & set(config)


def _arguments(family, config, model):
    """Return the constructor's arguments among settings, of which a run has many more."""
    known = inspect.signature(family.__init__).parameters
    needed = ["language_config", "vocab_size"]
    missing = [key for key in needed if not config.get(key)]
    if missing:
        raise ValueError(f"The sizes of the model {model!r} lack {missing}.")
    return {key: copy.deepcopy(value) for key, value in config.items() if key in known}


def _named(name):
    from dl_techniques.training.recipes import RECIPES, get_recipe

    if name in MODEL_NAMES:
        return model_arguments(name)
    if name in DECODER_CONFIGS:
        return copy.deepcopy(DECODER_CONFIGS[name])
    if name in RECIPES:
        return get_recipe(name)
    if name.endswith(".json"):
        return json.loads(Path(name).read_text())
    named = [*MODEL_NAMES, *DECODER_CONFIGS, *RECIPES]
    raise ValueError(
        f"Unknown model {name!r}: choose from {', '.join(named)}, or name a JSON file."
    )


def make_skeleton(model: str | dict, precision: str = "float32", remat: bool | None = None):
    """Return a model without weights.

    Args:
        model: See `model_config`.
        precision: The dtype policy.
        remat: Whether blocks are computed again in the backward pass; None: as the sizes say.
    """
    family, config = model_config(model)
    return without_values(lambda: family(**with_remat(config, remat), dtype=precision))


def with_remat(config: dict, remat: bool | None) -> dict:
    """Return a constructor's arguments with this `remat` in encoder and decoder; None: as it is."""
    parts = [part for part in ("vision_config", "language_config") if part in config]
    if remat is None:
        return config
    return {**config, **{part: {**config[part], "remat": remat} for part in parts}}


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
