"""Lets a GhostVis learn from rewards of its own answers (GRPO), after supervised training.

    python train/ghostvis_grpo.py --source chatsft_checkpoints --data FOLDER
    python train/ghostvis_grpo.py --source model.keras --tiny --device_batch_size 16 --llm_lr 3e-5

Questions need answers that can be checked: a text, a number, or the letter of a choice. The backend
is chosen by KERAS_BACKEND.
"""

import argparse
import sys

import keras

from dl_techniques.cli import run_command
from dl_techniques.training.grpo import OPTIMIZER, GRPOTrainer
from dl_techniques.training.grpo_run import (
    load_source,
    read_questions_of,
    run_grpo,
    shapes_questions,
)
from dl_techniques.training.stages import Stage


def get_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the settings: change them here, or by flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--source", required=True, help="checkpoint folder, .keras file, or hf://owner/name")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", help="folder or .jsonl file of questions about pictures")
    data.add_argument("--tiny", action="store_true", help="questions about generated shapes")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--held_out", help="questions about other pictures, as --data")
    held_out.add_argument(
        "--held_out_share", type=float, default=0.1, help="else: of the pictures of --data"
    )
    add("--output", default="chatrl_checkpoints", help="folder for everything that is written")
    add("--num_samples", type=int, default=8, help="answers to each question of a step")
    add("--device_batch_size", type=int, default=4, help="questions of a step")
    add("--num_steps", type=int, default=50)
    add("--unfreeze_llm_layers", type=int, default=4, help="last blocks that learn; 0: all of it")
    add("--llm_lr", type=float, default=1e-6)
    add("--projector_lr", type=float, default=0.0, help="0: frozen")
    add("--resampler_lr", type=float, default=0.0, help="0: frozen")
    add("--temperature", type=float, default=1.0)
    add("--kl_coef", type=float, default=0.04)
    add("--clip_epsilon", type=float, default=0.2)
    add("--updates", type=int, default=1, help="updates of the weights for each draw")
    add("--max_new_tokens", type=int, default=16)
    add("--log_every", type=int, default=10)
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def learning_stage(settings: argparse.Namespace) -> Stage:
    """Return what learns, and how fast."""
    rates = {
        "language_decoder": settings.llm_lr,
        "vision_projector": settings.projector_lr,
        "vision_resampler": settings.resampler_lr,
    }
    blocks = settings.unfreeze_llm_layers
    return Stage(
        name="grpo",
        steps=settings.num_steps * settings.updates,
        trainable={part: rate for part, rate in rates.items() if rate},
        unfreeze_last_blocks={"language_decoder": blocks} if blocks and settings.llm_lr else {},
        optimizer={"type": "adamw", "weight_decay": OPTIMIZER["weight_decay"]},
        schedule={"type": "constant"},
        clipnorm=OPTIMIZER["gradient_clipping_by_norm"],
    )


def train(settings: argparse.Namespace) -> dict:
    """Run the steps; print the mean reward of held-out questions before and after."""
    stage = learning_stage(settings)
    keras.utils.set_random_seed(settings.seed)
    model = load_source(settings.source)
    if settings.tiny:
        questions, held_out = shapes_questions(min(model.image_size), settings.seed)
    else:
        held_out = settings.held_out or settings.held_out_share
        questions, held_out = read_questions_of(settings.data, held_out, settings.seed)
    stage.apply(model)
    names = ("num_samples", "temperature", "kl_coef", "clip_epsilon", "max_new_tokens", "updates")
    options = {name: getattr(settings, name) for name in names}
    trainer = GRPOTrainer(model, model.optimizer, **options, seed=settings.seed)
    sizes = (settings.num_steps, settings.device_batch_size, settings.log_every)
    results = run_grpo(trainer, questions, held_out, settings.output, *sizes, settings.seed)
    before, after = results["reward_before"], results["reward_after"]
    print(f"held-out mean reward {before:.4f} before, {after:.4f} after {results['steps']} steps")
    return results


def main() -> None:
    """Read the flags and train."""
    settings = get_arguments(sys.argv[1:])
    run_command(lambda: train(settings))


if __name__ == "__main__":
    main()
