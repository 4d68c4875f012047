"""Teaches the decoder of a GhostVis to write, from text alone.

    python train/ghostvis_base.py --tokenizer FOLDER --data FOLDER --depth 20
    python train/ghostvis_base.py --tiny

The backend is chosen by KERAS_BACKEND. --resume_from goes on with a run that stopped.
"""

import sys

from dl_techniques.cli import run_command
from dl_techniques.training.ghostvis_flags import parse_flags, settings_of, train_stage


def get_config(flags) -> dict:
    """Return the settings: change them here, or by flags."""
    return settings_of("base", flags)


def train(arguments: list[str]) -> None:
    """Train as the command line says."""
    flags = parse_flags("base", arguments, __doc__.splitlines()[0])
    train_stage(get_config(flags), flags)


if __name__ == "__main__":
    run_command(lambda: train(sys.argv[1:]))
