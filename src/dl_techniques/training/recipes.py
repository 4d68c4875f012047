"""Named settings of whole training runs; every key can be overridden on the command line."""

import copy

from dl_techniques.models.nvlm_configs import NVLM_PROJECTOR
from dl_techniques.training.nvlm_stages import guide_stages


def default_config() -> dict:
    """Return the settings of a run; the recipes change some of them.

    - `model`: a name in `MODEL_NAMES`; "custom" with the three `*_config` dicts; "backbones"
      with a published encoder and decoder as `vision_backbone` and `language_backbone` (see
      `from_backbones`); the folder of an earlier run; or what `from_preset` takes. `family` is
      the class of "backbones" and presets: "NanoVLM", "GhostVis" or "NVLM". `model_changes` are
      constructor arguments that replace a named configuration's; dicts replace single keys.
    - A model from scratch gets a processor with `template` (a name in `TEMPLATES`),
      `image_processor` (what `image_processor_from_config` takes; None: pictures are stretched),
      `placeholder_tiles` (see `VQADataProcessor`) and, with `tile_tags`, a token for each tag of a
      tile, as NVLM-X and -H need. A model with weights brings its own; settings that say
      something else are refused, but "backbones" take a `tokenizer`, `template` and
      `image_processor`.
    - `data`: "shapes", or a path for `read_samples`, learned in `epochs`. With a `mixture` (a name
      in `MIXTURES`, source -> share, or "all": what lies in the folder, in proportion to its
      rows): a folder that holds the sources, or "hub"; then `steps` says for how long at most, and
      `max_epochs` how often a source may come again (the stage ends when none is left).
    - Scores are taken on `evaluation_data`, a path for `read_samples`. Where it is None, those of
      `data` are taken on pictures that are held out of it, those of a mixture not at all.
    - `pictures` counts the generated shapes; `isolate_turns` keeps the questions about one image
      from seeing each other; `vocab_size` is the most ids of a tokenizer trained on the data,
      unless `tokenizer` names a folder or the model brings one.
    - `learning_rates`: peaks, per component (vision, language, projection) or component pattern;
      what is not named is frozen. One `schedule`: warm-up, then "cosine", "linear" or "constant"
      to `alpha`. See `Stage` for what else it takes.
    - `batch_size` counts rows on all devices of a process; of several processes that share a
      mixture, each takes so many.
    - `precision`: a dtype policy of Keras. "auto": mixed_float16 on a GPU, else float32; the model
      of an earlier run keeps its own.
    - `layout`, `devices`, `model_parallel`: see `make_distribution`; "mirrored": see
      `mirrored_strategy`. Of several processes, `coordinator`, `num_processes` and `process_id`
      are those of `initialize_processes`; coordinator "slurm" takes them from the job.
    - `stages`: what differs in each of the run's stages: dicts with a `name` and any of
      `STAGE_SETTINGS`.
    """
    return {
        "model": "nanovlm_222m",
        "family": "NanoVLM",
        "model_changes": None,
        "template": "question_answer",
        "image_processor": None,
        "placeholder_tiles": "all",
        "tile_tags": False,
        "vision_config": None,
        "language_config": None,
        "projection_config": None,
        "vision_backbone": None,
        "language_backbone": None,
        "data": "shapes",
        "mixture": None,
        "max_epochs": None,
        "evaluation_data": None,
        "pictures": 10000,
        "picture_size": 224,
        "held_out_share": 0.1,
        "held_out_questions": 2000,
        "tokenizer": None,
        "vocab_size": 4096,
        "max_text_length": 512,
        "max_tiles": None,
        "max_documents": None,
        "max_turns": None,
        "isolate_turns": False,
        "augment": [],
        "batch_size": 8,
        "epochs": 10,
        "steps": None,
        "optimizer": {"type": "adamw", "beta_1": 0.9, "beta_2": 0.999, "weight_decay": 0.01},
        "learning_rates": {"vision": 1e-5, "language": 1e-5, "projection": 1e-4},
        "unfreeze_last_blocks": {},
        "layer_decay": {},
        "ema_decay": None,
        "schedule": "cosine",
        "warmup_share": 0.03,
        "alpha": 1e-4,
        "clipnorm": 1.0,
        "accumulation_steps": 1,
        "label_smoothing": 0.1,
        "chunk_size": None,
        "remat": False,
        "objective": None,
        "lora": None,
        "precision": "auto",
        "layout": "single",
        "devices": None,
        "model_parallel": 1,
        "coordinator": None,
        "num_processes": None,
        "process_id": None,
        "seed": 0,
        "log_every": 10,
        "checkpoint_every": 500,
        "evaluate_every": None,
        "evaluation_questions": 64,
        "save_every_epochs": 5,
        "wandb_project": None,
        "stages": [{"name": "train"}],
        "output_dir": "runs/nanovlm",
    }


# What may differ from stage to stage.
STAGE_SETTINGS = (
    *("data", "mixture", "max_epochs", "max_tiles", "max_documents", "max_turns", "augment"),
    "max_text_length",
    *("batch_size", "epochs", "steps", "optimizer", "learning_rates", "unfreeze_last_blocks"),
    *("layer_decay", "ema_decay", "schedule", "warmup_share", "alpha", "clipnorm"),
    *("accumulation_steps", "label_smoothing", "chunk_size", "objective", "lora"),
)

# What these may be besides None.
_OPTIONAL = {
    "image_processor": dict,
    "model_changes": dict,
    "vision_config": dict,
    "language_config": dict,
    "projection_config": dict,
    "vision_backbone": str,
    "language_backbone": str,
    "mixture": (str, dict),
    "max_epochs": float,
    "evaluation_data": str,
    "tokenizer": str,
    "max_tiles": int,
    "max_documents": int,
    "max_turns": int,
    "steps": int,
    "ema_decay": float,
    "clipnorm": float,
    "chunk_size": int,
    "objective": dict,
    "lora": dict,
    "devices": int,
    "coordinator": str,
    "num_processes": int,
    "process_id": int,
    "evaluate_every": int,
    "wandb_project": str,
}


def check_config(config: dict) -> None:
    """Refuse settings that no run can have; models and optimizers check their own.

    Raises:
        ValueError: for unknown or missing settings, or values of a wrong type or below 1.
    """
    defaults = default_config()
    unknown, missing = sorted(set(config) - set(defaults)), sorted(set(defaults) - set(config))
    if unknown or missing:
        raise ValueError(
            f"Unknown settings {unknown}, missing settings {missing}: there are "
            f"{', '.join(defaults)}."
        )
    for key in defaults:
        _check_value(key, config[key])
    for stage in config["stages"]:
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            raise ValueError(f"Every stage must be a dict with a name, got {stage!r}.")
        unknown = sorted(set(stage) - {"name", *STAGE_SETTINGS})
        if unknown:
            raise ValueError(
                f"Stage {stage['name']!r} cannot have {unknown}: choose from "
                f"{', '.join(STAGE_SETTINGS)}."
            )
        for key in set(stage) - {"name"}:
            _check_value(key, stage[key])


def setting_types(key: str) -> tuple[type, ...]:
    """Return the types that a setting may have; None's is the last if it may be None."""
    if key not in _OPTIONAL:
        return (type(default_config()[key]),)
    kinds = _OPTIONAL[key]
    return (*(kinds if isinstance(kinds, tuple) else (kinds,)), type(None))


def _check_value(key, value):
    types = setting_types(key)
    kinds = tuple(kind for kind in types if kind is not type(None))
    if value is None and kinds != types:
        return
    accepted = (*kinds, int) if float in kinds else kinds
    if isinstance(value, bool) != (bool in kinds) or not isinstance(value, accepted):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{key} must be of type {names}, got {value!r}.")
    if kinds == (int,) and key not in ("seed", "process_id") and value < 1:
        raise ValueError(f"{key} must be at least 1, got {value}.")


def stage_configs(config: dict) -> list[dict]:
    """Return the settings of each stage, `name` among them."""
    return [{**config, **stage} for stage in config["stages"]]


def _small_model(
    img_size,
    patch_size,
    width,
    vision_depth,
    language_depth,
    scale_factor,
    dropout,
    vision_width=None,
):
    vision_width = vision_width or width
    return {
        "model": "custom",
        "vision_config": {
            "img_size": img_size,
            "patch_size": patch_size,
            "embed_dim": vision_width,
            "depth": vision_depth,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "dropout": dropout,
        },
        "language_config": {
            "hidden_dim": width,
            "num_layers": language_depth,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_dim": 2 * width,
            "dropout": dropout,
        },
        "projection_config": {
            "input_dim": vision_width,
            "output_dim": width,
            "scale_factor": scale_factor,
        },
    }


# Muon learns these small models from scratch in a third of AdamW's steps.
_FROM_SCRATCH = {
    "optimizer": {"type": "muon", "adam_lr_ratio": 0.5},
    "learning_rates": {"vision": 4e-3, "language": 4e-3, "projection": 4e-3},
    "warmup_share": 0.08,
    "alpha": 0.02,
    "label_smoothing": 0.0,
    "vocab_size": 1024,
    "max_text_length": 128,
    "batch_size": 32,
    "precision": "float32",
}

# The released nanoVLM of 460M parameters: https://github.com/huggingface/nanoVLM.
_NANOVLM = {
    "model": "backbones",
    "vision_backbone": "hf://google/siglip2-base-patch16-512",
    "language_backbone": "hf://HuggingFaceTB/SmolLM2-360M-Instruct",
    "mixture": "all",
    "max_text_length": 4096,
    "batch_size": 2,
    "accumulation_steps": 8,
    "learning_rates": {"vision": 5e-5, "language": 5e-5, "projection": 5.12e-3},
    "warmup_share": 0.03,
    "alpha": 0.1,
    "clipnorm": 1.0,
    "label_smoothing": 0.0,
    "chunk_size": 2048,
    "precision": "mixed_bfloat16",
}

RECIPES = {
    "default": {},
    "nanovlm": {
        **_NANOVLM,
        "data": "finevision",
        "steps": 40000,
        "output_dir": "runs/nanovlm_460m",
    },
    # The first release, of 222M parameters: 5 epochs of The Cauldron, 256 rows at a time.
    "nanovlm_first": {
        **_NANOVLM,
        "vision_backbone": "hf://google/siglip-base-patch16-224",
        "language_backbone": "hf://HuggingFaceTB/SmolLM2-135M",
        "data": "the_cauldron",
        "max_epochs": 5.0,
        "max_text_length": 128,
        "max_documents": 1,
        "batch_size": 256,
        "accumulation_steps": 1,
        "learning_rates": {"vision": 1e-4, "language": 1e-4, "projection": 2e-3},
        "steps": 34000,
        "output_dir": "runs/nanovlm_222m",
    },
    # The guide's order of learning: see, align, then all together. `train/nvlm.py` has the paper's.
    "nvlm": {
        "model": "backbones",
        "family": "NVLM",
        "vision_backbone": "hf://OpenGVLab/InternViT-6B-448px-V1-5",
        "language_backbone": "hf://Qwen/Qwen2-72B-Instruct",
        "model_changes": {"projector_config": NVLM_PROJECTOR, "scale_factor": 2},
        "data": "nvlm",
        "accumulation_steps": 4,
        "max_text_length": 2048,
        "label_smoothing": 0.0,
        "chunk_size": 2048,
        "warmup_share": 0.03,
        "alpha": 0.1,
        "clipnorm": 1.0,
        "precision": "mixed_bfloat16",
        "stages": guide_stages("decoder"),
        "output_dir": "runs/nvlm",
    },
    "demo": {
        **_FROM_SCRATCH,
        **_small_model(48, 8, 128, 2, 4, 2, 0.0),
        # One matrix, as nanoVLM and SmolVLM have: transformers can run the exported model.
        "projection_config": {
            "input_dim": 128,
            "output_dim": 128,
            "scale_factor": 2,
            "use_gelu": False,
            "use_layer_norm": False,
            "use_bias": False,
        },
        "pictures": 12000,
        "picture_size": 96,
        "epochs": 3,
        "output_dir": "runs/demo",
    },
    "easy_vqa": {
        **_FROM_SCRATCH,
        **_small_model(64, 8, 128, 4, 3, 2, 0.0),
        "isolate_turns": True,
        "max_text_length": 192,
        "augment": ["flip", "crop"],
        "epochs": 12,
        "output_dir": "runs/easy_vqa",
    },
    "cifar10": {
        **_FROM_SCRATCH,
        **_small_model(32, 4, 128, 6, 1, 2, 0.0),
        "augment": ["flip", "crop"],
        "max_text_length": 48,
        "epochs": 10,
        "output_dir": "runs/cifar10",
    },
    # Of 794 photos nothing much can be learned from scratch: the picture is small, and the
    # questions are what is regularised.
    "daquar": {
        **_FROM_SCRATCH,
        **_small_model(32, 16, 128, 1, 1, 1, 0.1, vision_width=64),
        "isolate_turns": True,
        "max_text_length": 224,
        "augment": ["crop"],
        "vocab_size": 3000,
        "label_smoothing": 0.2,
        "epochs": 20,
        "output_dir": "runs/daquar",
    },
}


def get_recipe(name: str) -> dict:
    """Return the settings of a named run.

    Raises:
        ValueError: if there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}: choose from {sorted(RECIPES)}.")
    return copy.deepcopy({**default_config(), **RECIPES[name]})
