"""What a run leaves beside its checkpoints, logs and settings: models, scores and pictures."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from dl_techniques.checkpoints.adapter_files import CONFIG_FILE as ADAPTER_CONFIG
from dl_techniques.checkpoints.adapter_files import WEIGHTS_FILE
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.training.run_folder import CONFIG_FILE, FINAL_MODEL
from dl_techniques.training.stage_run import ADAPTERS_FOLDER, MODEL_FILE

# The final model first: without it the folder is no finished run.
_OF_THE_RUN = (
    *(FINAL_MODEL, "results.json", "checks.json", "loss_curve.png", "contact_sheet.png"),
    *("nanovlm_checkpoint_epoch_*.keras", "pictures/[0-9][0-9].png", "samples/step_[0-9]*.png"),
)
_OF_A_STAGE = (
    MODEL_FILE,
    f"{ADAPTERS_FOLDER}/{WEIGHTS_FILE}",
    f"{ADAPTERS_FOLDER}/{ADAPTER_CONFIG}",
)


def remove_outputs(folder: Path, stages: Iterable[str]) -> None:
    """Remove what a run wrote that would pass for what the next one in its folder learned.

    All other files stay, and folders with such.

    Args:
        folder: The run's.
        stages: Names of stages, beside those in the folder's `config.json`.

    Raises:
        OSError: if a file cannot be removed.
        ValueError: if `config.json` cannot be read.
    """
    settings, names = folder / CONFIG_FILE, set(stages)
    if settings.is_file():
        names |= {stage["name"] for stage in read_json(settings).get("stages", [])}
    of_stages = [f"{name}/{file}" for name in sorted(names) for file in _OF_A_STAGE]
    for pattern in (*_OF_THE_RUN, *of_stages):
        for path in sorted(folder.glob(pattern)):
            path.unlink()
            for parent in path.relative_to(folder).parents[:-1]:
                with contextlib.suppress(OSError):  # It holds other files.
                    (folder / parent).rmdir()
