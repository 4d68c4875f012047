"""Named settings of whole training runs; every key can be overridden on the command line."""

import copy


def default_config() -> dict:
    """Return the settings of a NanoVLM run; the recipes change some of them.

    Keys: `model` is a name in `NANOVLM_CONFIGS`, or "custom" with the three `*_config` dicts;
    `data` is "shapes" or a path for `read_samples`; `pictures` counts the generated shapes;
    `isolate_turns` keeps the questions about one image from seeing each other;
    `vocab_size` is the most ids of a tokenizer trained on the data, unless `tokenizer` names a
    folder; the learning rates are peaks of one schedule (warm-up, then cosine to `alpha`).
    """
    return {
        "model": "nanovlm_222m",
        "vision_config": None,
        "language_config": None,
        "projection_config": None,
        "data": "shapes",
        "pictures": 10000,
        "picture_size": 224,
        "held_out_share": 0.1,
        "held_out_questions": 2000,
        "tokenizer": None,
        "vocab_size": 4096,
        "max_text_length": 512,
        "max_turns": None,
        "isolate_turns": False,
        "augment": [],
        "batch_size": 8,
        "epochs": 10,
        "optimizer": {"type": "adamw", "beta_1": 0.9, "beta_2": 0.999, "weight_decay": 0.01},
        "learning_rates": {"vision": 1e-5, "language": 1e-5, "projection": 1e-4},
        "warmup_share": 0.03,
        "alpha": 1e-4,
        "clipnorm": 1.0,
        "accumulation_steps": 1,
        "label_smoothing": 0.1,
        "precision": "auto",
        "seed": 0,
        "log_every": 10,
        "save_every_epochs": 5,
        "output_dir": "runs/nanovlm",
    }


# What these may be besides None.
_OPTIONAL = {
    "vision_config": dict,
    "language_config": dict,
    "projection_config": dict,
    "tokenizer": str,
    "max_turns": int,
    "clipnorm": float,
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
    for key, default in defaults.items():
        value, kind = config[key], _OPTIONAL.get(key, type(default))
        if value is None and key in _OPTIONAL:
            continue
        accepted = (float, int) if kind is float else kind
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
            raise ValueError(f"{key} must be of type {kind.__name__}, got {value!r}.")
        if kind is int and key != "seed" and value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}.")


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

RECIPES = {
    "default": {},
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
