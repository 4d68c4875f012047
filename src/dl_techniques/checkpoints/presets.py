"""Models from folders and the hub, and back: `from_preset`, `save_to_preset`, `push_to_hub`."""

import copy
import os
import pathlib
import tempfile

from dl_techniques.checkpoints.building import Source, build
from dl_techniques.checkpoints.exporting import save_weights
from dl_techniques.checkpoints.formats import CONFIG_FILE, read_folder
from dl_techniques.checkpoints.hub import (
    CONFIG_FILES,
    WEIGHT_FILES,
    local_folder,
    repository_name,
    upload_folder,
)
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.model_card import write_model_card
from dl_techniques.checkpoints.native import MODEL_TYPE, NATIVE, native_config
from dl_techniques.checkpoints.processors import processor_of
from dl_techniques.checkpoints.safetensors_writer import MAX_SHARD_BYTES
from dl_techniques.checkpoints.staging import staged

GENERATION_FILE = "generation_config.json"


def from_preset(
    cls,
    source: str | os.PathLike,
    load_weights: bool = True,
    dtype=None,
    revision: str | None = None,
    tokenizer=None,
    processor="preset",
):
    """Return a model with the weights and the processor of a preset.

    Args:
        cls: The model's class.
        source: A folder in our format; for `NanoVLM` nanoVLM's, SmolVLM's or Idefics3's, for
            `GhostVis` LLaVA-1.5's, for `NVLM` InternVL's (OpenGVLab's or transformers') or
            NVLM-D's; "hf://owner/name", the same on the hub; or the name of one of our
            configurations, such as "nanovlm_222m".
        load_weights: False: random weights in the preset's configuration.
        dtype: The weights' dtype or a policy, such as "bfloat16"; default: Keras' own.
        revision: Branch, tag or commit on the hub.
        tokenizer: A `Tokenizer`, a folder or "hf://owner/name" with its files, in place of what
            the preset names.
        processor: What `model.processor` becomes; default: the preset's, and None loads the model
            alone.

    Raises:
        ValueError: naming the file that is missing, or all that does not fit.
        ConnectionError: if the hub cannot be reached and the cache lacks the files.
    """
    if isinstance(processor, str) and processor != "preset":
        raise ValueError(f"processor={processor!r} must be a VQADataProcessor, None or 'preset'.")
    if isinstance(source, str) and source in cls.presets:
        if not load_weights:
            return cls(**copy.deepcopy(cls.presets[source]), dtype=dtype)
        if source not in cls.public_weights:
            raise ValueError(
                f"No weights are published for {source!r}: give load_weights=False for random "
                f"ones. There are weights for {sorted(cls.public_weights)}."
            )
        source = cls.public_weights[source]
    files = CONFIG_FILES + (WEIGHT_FILES if load_weights else ())
    folder = local_folder(source, revision, files)
    found, config = read_folder(folder)
    if found.part != "model":
        raise ValueError(
            f"{source} is {found.name}'s, a {found.part} part alone: give it to "
            f"{cls.__name__}.from_backbones({found.part}=...)."
        )
    known = found.class_name(config) or cls.__name__
    if known != cls.__name__:
        raise ValueError(f"{source} is a {known}, not a {cls.__name__}.")
    sources = [Source(folder, found.keys(config))] if load_weights else []
    model = build(cls, {**found.arguments(config), "dtype": dtype}, *sources)
    files = folder if found.name != MODEL_TYPE else None
    model.stop_ids = stop_ids_of(files, config)
    model.training_data, model.results = config.get("training_data"), config.get("results")
    if isinstance(processor, str):
        has_one = config.get("has_processor", True)
        processor = processor_of(found, config, folder, model, tokenizer) if has_one else None
    model.processor = processor
    return model


def stop_ids_of(folder: pathlib.Path | None, config: dict) -> tuple[int, ...]:
    """Return the end tokens that a folder's generation_config.json and config.json name.

    Raises:
        ValueError: if they are no ids.
    """
    configs = [config, config.get("text_config"), config.get("llm_config")]
    if folder is not None and (folder / GENERATION_FILE).is_file():
        configs.insert(0, read_json(folder / GENERATION_FILE))
    ids = []
    for each in configs:
        given = each.get("eos_token_id") if isinstance(each, dict) else None
        for token in given if isinstance(given, list) else [given]:
            if token is not None and (not isinstance(token, int) or token < 0):
                raise ValueError(
                    f"{folder or CONFIG_FILE}: eos_token_id={given!r}: expected token ids."
                )
            ids.append(token)
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def save_to_preset(
    self,
    folder: str | os.PathLike,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that `from_preset` reads, complete in itself.

    It holds config.json, model.safetensors (large models: shards and their index), README.md, and
    of a model with a processor preprocessor_config.json and the tokenizer's files. After an error
    or ctrl-C the folder is as it was.

    Args:
        self: The model.
        folder: Made where it does not exist; a preset in it is replaced.
        dtype: "float32", "float16" or "bfloat16"; default: each weight's own.
        max_shard_bytes: See `write_folder`.

    Raises:
        ValueError: if a float16 value would be infinite, or the weights are quantized or have
            adapters.
        OSError: if the folder cannot be written.
    """
    for layer in self._flatten_layers():
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"{layer.path} is quantized or has a LoRA adapter, which a preset cannot hold: "
                "save a .keras file."
            )
    config = native_config(self)
    with staged(folder) as place:
        save_weights(self, place, NATIVE, dtype, max_shard_bytes)
        if self.processor is not None:
            self.processor.save(place)
        write_model_card(self, place / "README.md")
        write_json(place / CONFIG_FILE, config)


def push_to_hub(self, repository: str, private: bool | None = None, dtype: str | None = None):
    """Upload the model as a preset and return its address.

    The model card states the configuration, the parameters, `self.training_data` and
    `self.results`.

    Args:
        self: The model.
        repository: "owner/name"; made where it does not exist.
        private: Whether a new repository is private; None: as the owner has set it.
        dtype: See `save_to_preset`.

    Raises:
        ValueError: for a malformed name, or if the hub refuses.
        ConnectionError: if the hub cannot be reached.
    """
    repository_name(repository)  # Refused before gigabytes are written.
    with tempfile.TemporaryDirectory() as folder:
        save_to_preset(self, folder, dtype)
        return upload_folder(folder, repository, private)
