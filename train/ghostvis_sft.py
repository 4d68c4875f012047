"""Teaches a GhostVis to answer: resampler, projector and the last blocks of the decoder learn.

    python train/ghostvis_sft.py --source mid_checkpoints --data FOLDER
    python train/ghostvis_sft.py --tiny --source mid_checkpoints

The backend is chosen by KERAS_BACKEND. --resume_from goes on with a run that stopped.
"""

import sys

from dl_techniques.cli import run_command
from dl_techniques.training.ghostvis_flags import parse_flags, settings_of, train_stage


def get_config(flags) -> dict:
    """Return the settings: change them here, or by flags."""
    return settings_of("sft", flags)


def train(arguments: list[str]) -> None:
    """Train as the command line says."""
    flags = parse_flags("sft", arguments, __doc__.splitlines()[0])
    train_stage(get_config(flags), flags)


if __name__ == "__main__":
    run_command(lambda: train(sys.argv[1:]))
