"""Trains an NVLM: tiles in the sequence (D), by gated cross-attention (X), or both (H).

    python train/nvlm.py --architecture hybrid --tokenizer FOLDER --data FOLDER
    python train/nvlm.py --architecture cross_attention --tiny

The backend is chosen by KERAS_BACKEND. --resume goes on with the run in --output.
"""

import argparse
import sys

from dl_techniques.cli import run_command
from dl_techniques.training import tiny_settings
from dl_techniques.training.nvlm_stages import (
    MODELS,
    TINY_MODELS,
    connector_rates,
    guide_stages,
    paper_stages,
)
from dl_techniques.training.recipes import get_recipe
from dl_techniques.training.run import run_training
from dl_techniques.training.run_folder import has_weights


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--architecture", default="decoder", choices=sorted(MODELS))
    add("--model", help="a name, or the folder of an earlier run; default: the paper's 72B")
    add("--stages", default="paper", choices=["guide", "paper"])
    add("--data", help="folder of the sources of the mixtures, or 'hub'")
    add("--tokenizer", help="folder of a tokenizer, for new weights")
    add("--max_num", type=int, help="most tiles of a picture, without the thumbnail; default: 6")
    add("--precision", default="mixed_bfloat16")
    add("--layout", default="single", help="see make_distribution")
    add("--output", help="default: runs/nvlm_ARCHITECTURE")
    add("--resume", action="store_true")
    add("--tiny", action="store_true", help="a model of 3M parameters on small sources")
    return parser.parse_args(arguments)


def get_config(flags: argparse.Namespace) -> dict:
    """Return the settings: change them here, or by flags."""
    model = flags.model or (TINY_MODELS if flags.tiny else MODELS)[flags.architecture]
    has_processor = has_weights({"model": model})
    if flags.max_num is not None and (flags.tiny or has_processor):
        what = "--tiny has 4 tiles" if flags.tiny else f"--model {model} has its own tiles"
        raise ValueError(f"--max_num={flags.max_num} is of a new model; {what}. Leave it out.")
    common = {
        "family": "NVLM",
        "model": model,
        **({"tokenizer": flags.tokenizer} if has_processor else _processor(flags)),
        "output_dir": flags.output or f"runs/nvlm_{flags.architecture}",
    }
    if flags.tiny:
        tiny = tiny_settings.tiny_settings(flags.data)
        return {**tiny, **common, "stages": _tiny_stages(flags)}
    if flags.data is None:
        raise ValueError("--data FOLDER is needed, or --data hub, or --tiny.")
    stages = {"guide": guide_stages, "paper": paper_stages}[flags.stages]
    return {
        **get_recipe("nvlm"),
        "tokenizer": flags.tokenizer,
        **common,
        "model_changes": None,
        "data": flags.data,
        "max_text_length": 3200,
        "precision": flags.precision,
        "layout": flags.layout,
        "stages": stages(flags.architecture),
    }


def _processor(flags) -> dict:
    """Return the settings of a new model's processor, but its tokenizer."""
    size, tiles = (32, 4) if flags.tiny else (448, flags.max_num or 6)
    return {
        "template": "chatml" if flags.tiny else "nvlm",
        "image_processor": {"kind": "nvlm", "image_size": size, "max_num": tiles},
        "tile_tags": flags.architecture != "decoder",
        "placeholder_tiles": "last" if flags.architecture == "hybrid" else "all",
    }


def _tiny_stages(flags) -> list[dict]:
    connector = connector_rates(flags.architecture, 4e-3)
    # The longest caption, with five tiles and their tags; D's tokens are all in the sequence.
    length = 104 if flags.architecture == "decoder" else 88
    answers = {"vision": 1e-3, "projection": 2e-3, "language": 2e-3}
    return [
        tiny_settings.text_stage(),
        tiny_settings.contrast_stage(max_text_length=length),
        tiny_settings.align_stage(connector),
        tiny_settings.sft_stage(answers),
    ]


def train(flags: argparse.Namespace) -> None:
    """Train, evaluate on held-out pictures, save a folder for `dl-techniques generate`."""
    config = get_config(flags)
    run_training(config, resume=flags.resume)
    if flags.tiny:
        tiny_settings.report(config["output_dir"], config["data"])


if __name__ == "__main__":
    run_command(lambda: train(parse_flags(sys.argv[1:])))
