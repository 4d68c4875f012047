"""Ties the frozen encoder of a GhostVis to its frozen decoder: resampler and projector learn.

    python train/ghostvis_align.py --source base_checkpoints --data FOLDER
    python train/ghostvis_align.py --tiny --source base_checkpoints

The backend is chosen by KERAS_BACKEND. --resume_from goes on with a run that stopped.
"""

import sys

from dl_techniques.cli import run_command
from dl_techniques.training import tiny_settings
from dl_techniques.training.ghostvis_flags import parse_flags, settings_of
from dl_techniques.training.run import run_training


def get_config(arguments: list[str]) -> dict:
    """Return the settings: change them here, or by flags."""
    flags = parse_flags("align", arguments, __doc__.splitlines()[0])
    config = settings_of("align", flags)
    if flags.resume_from:
        config["output_dir"] = flags.resume_from
    return config


def train(arguments: list[str]) -> None:
    """Train, and save a folder that the next stage takes as its --source."""
    config = get_config(arguments)
    run_training(config, resume=any(a.startswith("--resume_from") for a in arguments))
    if "--tiny" in arguments:
        tiny_settings.report(config["output_dir"], config["data"])


if __name__ == "__main__":
    run_command(lambda: train(sys.argv[1:]))
