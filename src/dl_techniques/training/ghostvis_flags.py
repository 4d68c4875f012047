"""The flags of GhostVis' training scripts, the settings that they stand for, and their runs."""

import argparse

from dl_techniques.models.vision_encoders import vision_encoder_config
from dl_techniques.training import tiny_settings
from dl_techniques.training.recipes import get_recipe
from dl_techniques.training.run import run_training

ARCHITECTURES = {
    "vlm_1.5b": "ghostvis_1_5b",
    "vlm_0.5b": "ghostvis_0_5b",
    "vlm_mini": "ghostvis_mini",
}
FOLDERS = {
    "base": "base_checkpoints",
    "align": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
}
_RECIPES = {"base": "all", "align": "vision_pretrain", "sft": "vision_sft_minimal"}
_TINY_RATE = 4e-3
# Flags of new weights; the ones of --source keep what they are. The mode of the resampler says also
# whether there is anything to learn.
_OF_NEW_WEIGHTS = (
    *("architecture_style", "depth", "vision_encoder_name", "vision_image_size"),
    *("vision_num_tokens", "vision_resampler_depth", "vision_resampler_heads"),
    *("vision_proj_hidden", "vision_proj_dropout"),
)


def parse_flags(stage: str, arguments: list[str], description: str) -> argparse.Namespace:
    """Return the flags of a stage: "base", "align" or "sft".

    Args:
        stage: which gives the defaults.
        arguments: the command line.
        description: of the script.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--architecture_style", default="vlm_1.5b", choices=sorted(ARCHITECTURES))
    add("--source", help="folder of the stage before; default: new weights")
    add("--resume_from", help="folder of this stage's own run, to go on with it")
    add("--data", help="folder of the sources, or 'hub'")
    add("--data_recipe_name", default=_RECIPES[stage])
    add("--tokenizer", help="folder of a tokenizer, for new weights")
    add("--vision_encoder_name", default="clip_vit_l14_336")
    add("--vision_encoder_trainable", type=_flag, default=False)
    add("--freeze_vision_encoder", type=_flag, default=True)
    add("--vision_image_size", type=int, default=336)
    add("--vision_num_tokens", type=int, default=64)
    add("--vision_resampler_mode", default="perceiver", help="'avgpool' has nothing to learn")
    add("--vision_resampler_depth", type=int, default=2)
    add("--vision_resampler_heads", type=int, default=8)
    add("--vision_proj_hidden", type=int, default=2048)
    add("--vision_proj_dropout", type=float, default=0.0)
    add("--depth", type=int, help="blocks of the decoder; default: the architecture's")
    add("--projector_lr", type=float, default={"align": 5e-5}.get(stage, 3e-5))
    add("--resampler_lr", type=float, default=3e-5)
    add("--vision_lr", type=float, default=1e-6, help="of an encoder that is not frozen")
    add("--llm_lr", type=float, default={"base": 3e-4}.get(stage, 1e-6))
    add("--unfreeze_llm_layers", type=int, default=4)
    add("--device_batch_size", type=int, default={"base": 32, "align": 16}.get(stage, 8))
    add("--total_batch_size", type=int, default=256, help="in tokens for the base stage, else rows")
    add("--grad_accum_steps", default="auto", help="a number, or 'auto'")
    add("--devices", type=int, default=1)
    add("--max_sequence_length", type=int, default=2048)
    add("--num_epochs", type=float, default=3.0 if stage == "sft" else 1.0)
    add(
        "--num_steps", type=int, default=20000, help="the most updates, should the data last longer"
    )
    add("--output", default=FOLDERS[stage])
    add("--tiny", action="store_true", help="a model of 3M parameters on small sources")
    if stage == "base":
        parser.set_defaults(total_batch_size=524288)
    return parser.parse_args(arguments)


def train_stage(settings: dict, flags: argparse.Namespace) -> None:
    """Train, and save a folder that the next stage takes as its --source."""
    run_training(settings, resume=flags.resume_from is not None)
    if flags.tiny:
        tiny_settings.report(settings["output_dir"], settings["data"])


def accumulation_steps(flags: argparse.Namespace, unit: int = 1) -> int:
    """Return batches per update: "auto" is total_batch_size / (device_batch_size x devices).

    Args:
        flags: what `parse_flags` returned.
        unit: of total_batch_size, for each row: its tokens in the base stage.

    Raises:
        ValueError: if the total is no multiple.
    """
    if flags.grad_accum_steps != "auto":
        return int(flags.grad_accum_steps)
    rows = flags.device_batch_size * flags.devices * unit
    if flags.total_batch_size % rows:
        raise ValueError(
            f"--total_batch_size={flags.total_batch_size} must be a multiple of {rows} "
            f"({flags.device_batch_size} rows x {flags.devices} devices"
            + (f" x {unit} tokens)." if unit > 1 else ").")
        )
    return flags.total_batch_size // rows


def settings_of(stage: str, flags: argparse.Namespace) -> dict:
    """Return the settings of `run_training`.

    Raises:
        ValueError: flags that contradict each other, or an encoder that does not exist.
    """
    if flags.vision_encoder_trainable == flags.freeze_vision_encoder:
        raise ValueError(
            "--vision_encoder_trainable and --freeze_vision_encoder contradict each other: give "
            "both, one true and one false."
        )
    if flags.source is not None:
        _check_source(stage, flags)
    common = {
        "family": "GhostVis",
        "output_dir": flags.resume_from or flags.output,
    }
    if flags.tiny:
        return {**_tiny(stage, flags), **common}
    if flags.data is None:
        raise ValueError("--data FOLDER is needed, or --data hub, or --tiny.")
    unit = flags.max_sequence_length if stage == "base" else 1
    return {
        **get_recipe("default"),
        **common,
        "model": flags.source or ARCHITECTURES[flags.architecture_style],
        "model_changes": None if flags.source else _changes(flags),
        **({} if flags.source else {"template": "ghostvis"}),
        "tokenizer": flags.tokenizer,
        "data": flags.data,
        "mixture": flags.data_recipe_name,
        "max_epochs": flags.num_epochs,
        "steps": flags.num_steps,
        "batch_size": flags.device_batch_size * flags.devices,
        "accumulation_steps": accumulation_steps(flags, unit),
        "devices": flags.devices if flags.devices > 1 else None,
        "layout": "data" if flags.devices > 1 else "single",
        "max_text_length": flags.max_sequence_length,
        "optimizer": {"type": "adamw", "weight_decay": 0.01},
        "label_smoothing": 0.0,
        "chunk_size": 2048,
        "stages": [{"name": stage, **_learned(stage, flags)}],
    }


def _check_source(stage, flags):
    """Refuse flags of new weights beside --source."""
    defaults = parse_flags(stage, [], "")
    wrong = [n for n in _OF_NEW_WEIGHTS if getattr(flags, n) != getattr(defaults, n)]
    if wrong:
        raise ValueError(
            f"{', '.join(f'--{name}' for name in wrong)}: of new weights, but the model in "
            f"--source {flags.source} stays as it is. Leave out one or the other."
        )


def _learned(stage, flags):
    """Return which parts learn in a stage, and how fast."""
    if stage == "base":
        return {"learning_rates": {"language": flags.llm_lr}}
    rates = {"vision_projector": flags.projector_lr}
    if flags.vision_resampler_mode == "perceiver":  # Means have nothing to learn.
        rates["vision_resampler"] = flags.resampler_lr
    if flags.vision_encoder_trainable:
        rates["vision"] = flags.vision_lr
    if stage == "align":
        return {"learning_rates": rates}
    blocks = {"language": flags.unfreeze_llm_layers}
    return {
        "learning_rates": {**rates, "language": flags.llm_lr},
        "unfreeze_last_blocks": blocks if flags.unfreeze_llm_layers else {},
    }


def _changes(flags) -> dict:
    encoder = vision_encoder_config(flags.vision_encoder_name, img_size=flags.vision_image_size)
    changes = {
        "vision_config": encoder,
        "resampler_config": {
            "num_tokens": flags.vision_num_tokens,
            "mode": flags.vision_resampler_mode,
            "depth": flags.vision_resampler_depth,
            "num_heads": flags.vision_resampler_heads,
        },
        "projector_config": {
            "hidden_dim": flags.vision_proj_hidden,
            "dropout": flags.vision_proj_dropout,
        },
    }
    if flags.depth is not None:
        changes["language_config"] = {"num_layers": flags.depth}
    return changes


def _tiny(stage, flags) -> dict:
    settings = tiny_settings.tiny_settings(flags.data)
    if stage == "base":
        # Text alone, learned last, would make a small decoder forget what pictures look like.
        stages = [tiny_settings.text_stage(), tiny_settings.contrast_stage()]
    elif stage == "align":
        stages = [tiny_settings.align_stage({"projection": _TINY_RATE})]
    else:
        rates = {"projection": _TINY_RATE / 2, "language": _TINY_RATE / 2}
        blocks = {"language": flags.unfreeze_llm_layers}
        stages = [tiny_settings.sft_stage(rates, unfreeze_last_blocks=blocks)]
    settings["stages"] = stages
    if flags.source:
        return {**settings, "model": flags.source, "tokenizer": flags.tokenizer}
    return {**settings, "model": "ghostvis_mini", "template": "ghostvis"}


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"
