"""Trains NanoVLM on generated shapes, a folder in The Cauldron's schema, or JSONL.

    python train/train_nanovlm.py --recipe demo
    python train/train_nanovlm.py --recipe easy_vqa --data FOLDER
    python train/train_nanovlm.py --model nanovlm_mini --data FOLDER --epochs 3 --batch_size 16

The backend is chosen by KERAS_BACKEND. Every key of the config is a flag, --help lists them;
--resume goes on where the run in --output_dir stopped.
"""

import sys

from dl_techniques.cli import run_command
from dl_techniques.cli_training import train_command
from dl_techniques.training.recipes import get_recipe


def get_config(recipe: str = "default") -> dict:
    """Return the settings: change them here, or by flags."""
    return get_recipe(recipe)


def main() -> None:
    """Train, evaluate on held-out pictures, save a folder for `dl-techniques generate`."""
    run_command(lambda: train_command(sys.argv[1:], get_config))


if __name__ == "__main__":
    main()
