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


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--architecture", default="decoder", choices=sorted(MODELS))
    add("--model", help="a name, or the folder of an earlier run; default: the paper's 72B")
    add("--stages", default="paper", choices=["guide", "paper"])
    add("--data", help="folder of the sources of the mixtures, or 'hub'")
    add("--tokenizer", help="folder of a tokenizer, for new weights")
    add("--max_num", type=int, default=6, help="most tiles of a picture, without the thumbnail")
    add("--precision", default="mixed_bfloat16")
    add("--layout", default="single", help="see make_distribution")
    add("--output", help="default: runs/nvlm_ARCHITECTURE")
    add("--resume", action="store_true")
    add("--tiny", action="store_true", help="a model of 3M parameters on small sources")
    return parser.parse_args(arguments)


def get_config(flags: argparse.Namespace) -> dict:
    """Return the settings: change them here, or by flags."""
    tags = flags.architecture != "decoder"
    common = {
        "family": "NVLM",
        "template": "nvlm",
        "tile_tags": tags,
        "placeholder_tiles": "last" if flags.architecture == "hybrid" else "all",
        "output_dir": flags.output or f"runs/nvlm_{flags.architecture}",
    }
    if flags.tiny:
        return {**tiny_settings.tiny_settings(flags.data), **common, **_tiny(flags)}
    if flags.data is None:
        raise ValueError("--data FOLDER is needed, or --data hub, or --tiny.")
    stages = {"guide": guide_stages, "paper": paper_stages}[flags.stages]
    return {
        **get_recipe("nvlm"),
        **common,
        "model": flags.model or MODELS[flags.architecture],
        "model_changes": None,
        "image_processor": {"kind": "nvlm", "image_size": 448, "max_num": flags.max_num},
        "data": flags.data,
        "tokenizer": flags.tokenizer,
        "max_text_length": 3200,
        "precision": flags.precision,
        "layout": flags.layout,
        "stages": stages(flags.architecture),
    }


def _tiny(flags) -> dict:
    connector = connector_rates(flags.architecture, 4e-3)
    # The longest caption, with five tiles and their tags; D's tokens are all in the sequence.
    length = 104 if flags.architecture == "decoder" else 88
    answers = {"vision": 1e-3, "projection": 2e-3, "language": 2e-3}
    return {
        "model": flags.model or TINY_MODELS[flags.architecture],
        "template": "chatml",
        "image_processor": {"kind": "nvlm", "image_size": 32, "max_num": 4},
        "stages": [
            tiny_settings.text_stage(),
            tiny_settings.contrast_stage(max_text_length=length),
            tiny_settings.align_stage(connector),
            tiny_settings.sft_stage(answers),
        ],
    }


def train(flags: argparse.Namespace) -> None:
    """Train, evaluate on held-out pictures, save a folder for `dl-techniques generate`."""
    config = get_config(flags)
    run_training(config, resume=flags.resume)
    if flags.tiny:
        tiny_settings.report(config["output_dir"], config["data"])


if __name__ == "__main__":
    run_command(lambda: train(parse_flags(sys.argv[1:])))
