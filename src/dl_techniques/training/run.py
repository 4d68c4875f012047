"""One whole training run from a dict of settings: data, model, stages, held-out score."""

import contextlib
import json
from pathlib import Path

import keras

from dl_techniques.datasets.epoch_stream import EpochStream
from dl_techniques.models.model_size import without_weights
from dl_techniques.training.distribution import make_distribution, mirrored_strategy
from dl_techniques.training.history import draw_log
from dl_techniques.training.processes import (
    initialize_processes,
    is_main_process,
    own_copy,
    whole_weights,
)
from dl_techniques.training.recipes import check_config, stage_configs
from dl_techniques.training.run_data import check_data, load_data, stage_data
from dl_techniques.training.run_evaluation import PeriodicEvaluation, final_evaluation, usable
from dl_techniques.training.run_folder import CONFIG_FILE, FINAL_MODEL, has_weights
from dl_techniques.training.run_model import (
    new_model,
    new_processor,
    precision_policy,
    vocabulary_of,
)
from dl_techniques.training.setup import COMPONENTS
from dl_techniques.training.stage_trainer import StageTrainer
from dl_techniques.training.stages import Stage
from dl_techniques.training.training_state import save_model
from dl_techniques.training.watching import WeightsAndBiases
from dl_techniques.utils.logger import logger
from dl_techniques.utils.versions import versions

VERSIONS_FILE = "versions.json"
# What may be changed when a run is resumed.
_FREE = {"log_every", "checkpoint_every", "output_dir", "wandb_project", "layout", "devices"}
_FREE |= {"model_parallel", "evaluation_data", "coordinator", "num_processes", "process_id"}


def run_training(config: dict, resume: bool = False, restart: bool = False) -> dict:
    """Train, evaluate on held-out pictures and save a folder that `load_checkpoint` reads.

    The folder holds what `StageTrainer` writes, `nanovlm_final.keras`, the processor and tokenizer,
    `config.json` (from which the run can be started again), `versions.json`, `loss_curve.png`,
    `results.json` (exact match with the pictures and with blank ones, per kind of question),
    `contact_sheet.png` and the `pictures` on it.

    Args:
        config: The settings; see `recipes.default_config`.
        resume: Go on where the run in `output_dir` stopped.
        restart: Begin anew where `output_dir` holds a run, whose checkpoints, models, scores and
            pictures are then removed.

    Returns:
        What `results.json` holds; nothing if there are no held-out questions.

    Raises:
        ValueError: for unknown or contradicting settings, before anything is computed.
    """
    if resume and restart:
        raise ValueError("A run is either resumed or restarted, not both.")
    check_config(config)
    _join_processes(config)  # Before anything is computed.
    folder = Path(config["output_dir"])
    if restart:
        _check_not_removed(folder, config)
    for settings in stage_configs(config):
        check_data(settings)
        _stage(settings, 1)
    skeleton = None
    if not has_weights(config):
        skeleton = without_weights(lambda: new_model(config))
        for settings in stage_configs(config):
            _stage(settings, 1).check_patterns(skeleton)
    if resume:
        _check_same_run(folder, config)
    keras.config.set_dtype_policy(precision_policy(config["precision"]))
    keras.utils.set_random_seed(config["seed"])
    first = stage_configs(config)[0]
    train, held_out = load_data(first)
    with _devices(config):
        if skeleton is None:
            model = new_model(config)
            processor = new_processor(config, train, model)
        else:
            processor = new_processor(config, train, skeleton)
            model = new_model(config, **vocabulary_of(processor, config))
    model.processor = processor
    held_out = usable(processor, held_out)
    stages = []
    for settings in stage_configs(config):
        samples = _samples(settings, first, train)
        data, steps, planned_steps = stage_data(settings, processor, samples)
        stages.append(_stage(settings, steps, planned_steps, data))
    trainer = _trainer(config, model, stages, held_out, folder)
    if not resume:  # A run that cannot be resumed must leave the folder as it was.
        trainer.begin(restart)
        _save_settings(folder, processor, config)
    logger.info("%s parameters", f"{model.count_params():,}")
    trainer.run(resume)
    if resume:
        _save_settings(folder, processor, config)
    with whole_weights(model):
        if is_main_process():
            save_model(model, folder / FINAL_MODEL)
            draw_log(folder / "log.jsonl", folder / "loss_curve.png")
    if not held_out:
        return {}
    with own_copy(model):
        return final_evaluation(model, held_out, folder)


def _samples(settings: dict, first: dict, train: list) -> list:
    """Return what a stage learns without a mixture, read once if it is the first stage's."""
    if settings["mixture"] is not None:
        return []
    if all(settings[name] == first[name] for name in ("data", "mixture")):
        return train
    return load_data(settings)[0]


def _join_processes(config: dict) -> None:
    names = ("coordinator", "num_processes", "process_id")
    given = tuple(config[name] for name in names)
    if given[0] == "slurm":
        given = (None, None, None)
    elif given == (None, None, None):
        return
    initialize_processes(*given, seed=config["seed"])


def _stage(settings: dict, steps: int, planned_steps: int | None = None, data=None) -> Stage:
    """Return the stage of some settings."""

    def paths(named):
        return {COMPONENTS.get(name, name): value for name, value in named.items()}

    return Stage(
        name=settings["name"],
        steps=steps,
        planned_steps=planned_steps,
        trainable=paths(settings["learning_rates"]),
        data=data,
        unfreeze_last_blocks=paths(settings["unfreeze_last_blocks"]),
        layer_decay=paths(settings["layer_decay"]),
        schedule={
            "type": settings["schedule"],
            "warmup_share": settings["warmup_share"],
            "alpha": settings["alpha"],
        },
        **{
            name: settings[name]
            for name in (
                *("optimizer", "accumulation_steps", "clipnorm", "ema_decay"),
                *("label_smoothing", "chunk_size", "objective", "lora"),
            )
        },
    )


def _trainer(config, model, stages, held_out, folder) -> StageTrainer:
    evaluate = None
    if held_out and config["evaluate_every"] is not None:
        evaluate = PeriodicEvaluation(
            model.processor, held_out, config["evaluation_questions"], folder
        )
    project = config["wandb_project"]
    return StageTrainer(
        model,
        stages,
        folder,
        checkpoint_every=config["checkpoint_every"],
        log_every=config["log_every"],
        evaluate=evaluate,
        evaluate_every=config["evaluate_every"],
        watchers=[] if project is None else [WeightsAndBiases(project, config=config)],
        on_step=_epoch_files(config, stages, folder),
    )


def _epoch_files(config, stages, folder):
    """Return what writes `nanovlm_checkpoint_epoch_{n}.keras`, of runs that count in epochs."""
    if len(stages) > 1 or not isinstance(stages[0].data, EpochStream):
        return None
    batches = len(stages[0].data.dataset)
    every, accumulated = config["save_every_epochs"] * batches, stages[0].accumulation_steps

    def write(step, model):
        epochs, rest = divmod(step * accumulated, every)
        if rest < accumulated and epochs:
            name = f"nanovlm_checkpoint_epoch_{epochs * config['save_every_epochs']}.keras"
            save_model(model, folder / name)

    return write


def _devices(config):
    """Return a context in which the model is laid out as the settings say."""
    if config["layout"] == "mirrored":
        return mirrored_strategy(config["devices"]).scope()
    distribution = make_distribution(config["layout"], config["devices"], config["model_parallel"])
    keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext()


def _save_settings(folder: Path, processor, config: dict) -> None:
    if not is_main_process():
        return
    processor.save(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    (folder / VERSIONS_FILE).write_text(json.dumps(versions(), indent=1))


def _check_not_removed(folder: Path, config: dict) -> None:
    for name in ("model", "vision_backbone", "language_backbone"):
        path = Path(config[name] or "")
        if config[name] and path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"To restart {folder} would remove its {name}, {path}: choose another output_dir."
            )


def _check_same_run(folder: Path, config: dict) -> None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"There is nothing to resume: {path} does not exist.")
    saved = json.loads(path.read_text())
    wanted = json.loads(json.dumps(config))
    other = sorted(k for k in wanted if k not in _FREE and saved.get(k) != wanted[k])
    if other:
        texts = [f"{k}: {saved.get(k)!r}, now {wanted[k]!r}" for k in other]
        raise ValueError(
            f"The run to resume has other settings: {'; '.join(texts)}. Resume it with its own "
            f"(--config {path}), or choose another output_dir."
        )
