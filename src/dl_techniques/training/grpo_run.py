"""One whole GRPO run: model, questions, steps, and what the held-out questions say of it."""

import json
from pathlib import Path

import numpy as np

from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.samples import split_by_image
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.models.vision_language_model import VisionLanguageModel
from dl_techniques.training.grpo import GRPOTrainer
from dl_techniques.training.grpo_batches import single_questions
from dl_techniques.training.run_folder import FINAL_MODEL, load_model
from dl_techniques.training.stop_signals import stop_signals
from dl_techniques.training.watching import LogFile
from dl_techniques.utils.logger import logger

TINY_PICTURES = {"train": 200, "heldout": 40}


def load_source(source: str) -> VisionLanguageModel:
    """Return a model with its processor.

    Args:
        source: See `run_folder.load_model`.

    Raises:
        ValueError: if there is no such model, or it has no processor.
    """
    model = load_model(source)
    if not isinstance(model, VisionLanguageModel):
        raise ValueError(f"{source} is a {type(model).__name__}, which answers no questions.")
    if model.processor is None:
        raise ValueError(
            f"{source} needs its processor: save it beside the model "
            "(model.processor.save(folder)), or the preset with model.processor."
        )
    return model


def shapes_questions(image_size: int, seed: int = 0) -> tuple[list, list]:
    """Return questions about generated pictures: (to learn, held out), one a sample."""
    size = max(32, image_size)
    return tuple(
        single_questions(generate_shapes(split, count, seed, size)[:])
        for split, count in TINY_PICTURES.items()
    )


def read_questions_of(data: str, held_out: str | float, seed: int = 0) -> tuple[list, list]:
    """Return questions of a data set: (to learn, held out), one a sample, of different pictures.

    Args:
        data: See `read_samples`.
        held_out: Share of the pictures to hold out, or another data set.
        seed: Another one holds out other pictures.

    Raises:
        ValueError: if data cannot be read, or one side would be empty.
    """
    samples = read_samples(data)
    if isinstance(held_out, str):
        sides = samples, read_samples(held_out)
    else:
        sides = split_by_image(samples, held_out, seed)
    if not all(sides):
        raise ValueError(
            f"With {held_out} held out there are {len(sides[0])} samples to learn and "
            f"{len(sides[1])} held out; both must have some."
        )
    return tuple(map(single_questions, sides))


def run_grpo(
    trainer: GRPOTrainer,
    questions: list,
    held_out: list,
    folder: str | Path,
    num_steps: int,
    batch_size: int,
    log_every: int = 10,
    seed: int = 0,
) -> dict:
    """Make some steps; a first ctrl-C ends them after the running one, and all is saved.

    The folder gets `log.jsonl` (one line per step), model and processor as `load_checkpoint` reads
    them, and `results.json`.

    Args:
        trainer: The trainer.
        questions: What it learns from, samples of one question each; every epoch has its own order.
        held_out: Samples to be answered before and after.
        folder: Where everything goes.
        num_steps: How many steps.
        batch_size: Questions per step.
        log_every: Steps between lines on the screen.
        seed: Of the order.

    Returns:
        What `results.json` holds: `reward_before` and `reward_after`, the mean rewards of drawn
        answers to the held-out questions, which is what is learned; `greedy_before` and
        `greedy_after`, those of the likeliest answers; and `steps`, how many were made.

    Raises:
        ValueError: a number below 1, or fewer questions than a batch.
    """
    if min(num_steps, batch_size, log_every) < 1 or len(questions) < batch_size:
        raise ValueError(
            f"num_steps={num_steps}, batch_size={batch_size} and log_every={log_every} must be at "
            f"least 1, and there must be a batch of questions; there are {len(questions)}."
        )
    folder = Path(folder)
    before = _held_out_rewards(trainer, held_out, "before")
    log, steps = LogFile(folder / "log.jsonl"), 0
    with stop_signals() as stop:
        for batch in _batches(questions, batch_size, num_steps, seed):
            row = trainer.train_step(batch)
            steps += 1
            log.numbers(steps, row)
            if steps % log_every == 0 or steps == num_steps:
                logger.info("step %d/%d %s", steps, num_steps, _text(row))
            if stop.is_set():
                break
    trainer.save(folder / FINAL_MODEL)
    trainer.model.processor.save(folder)
    results = {**before, **_held_out_rewards(trainer, held_out, "after"), "steps": steps}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return results


def _held_out_rewards(trainer, held_out, when):
    drawn, greedy = (trainer.mean_reward(held_out, drawn=drawn) for drawn in (True, False))
    text = "held-out reward %s: %.4f of drawn answers, %.4f of the likeliest (%d questions)"
    logger.info(text, when, drawn, greedy, len(held_out))
    return {f"reward_{when}": drawn, f"greedy_{when}": greedy}


def _batches(questions, size, steps, seed):
    """Yield batches of whole epochs, whose last questions that fill no batch are left out."""
    per_epoch = len(questions) // size
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(questions))
        yield [questions[i] for i in order[place * size : (place + 1) * size]]


def _text(row):
    return " ".join(f"{name} {value:.4g}" for name, value in row.items())
