"""Settings with which a whole pipeline of stages runs on a CPU in minutes."""

import json
import os
from pathlib import Path

from dl_techniques.datasets.sources import open_source
from dl_techniques.datasets.tiny_sources import write_tiny_sources
from dl_techniques.evaluation.held_out_loss import held_out_loss
from dl_techniques.training.recipes import get_recipe
from dl_techniques.training.run_folder import CONFIG_FILE, load_model
from dl_techniques.training.stage_run import MODEL_FILE

TINY_FOLDER = "runs/tiny_sources"
_RATE = 4e-3
_TEXT_MIX = {"text": 0.6, "phrases": 0.4}


def tiny_settings(data: str | None, folder: str = TINY_FOLDER) -> dict:
    """Return settings for `run_training` whose sources and tokenizer are written first.

    Args:
        data: See `write_tiny_sources`; default: the folder that DL_TECHNIQUES_DATA names, if any.
        folder: Where the sources are written.
    """
    data = data or os.environ.get("DL_TECHNIQUES_DATA")
    folder = str(write_tiny_sources(folder, data))
    return {
        **get_recipe("default"),
        "data": folder,
        "evaluation_data": str(Path(folder) / "held_out" / "questions.jsonl"),
        "held_out_questions": 1000,
        "tokenizer": str(Path(folder) / "tokenizer"),
        # Small models from scratch: see the recipes of `recipes.py`.
        "optimizer": {"type": "muon", "adam_lr_ratio": 0.5},
        "warmup_share": 0.08,
        "alpha": 0.05,
        "label_smoothing": 0.0,
        "precision": "float32",
        "max_text_length": 256,
        "checkpoint_every": 1000,
        "log_every": 50,
    }


def contrast_stage(steps: int = 400, max_text_length: int = 96) -> dict:
    """Return the stage that teaches the encoder, by contrast with captions and by writing them.

    Text is mixed in, or a small decoder would forget it.

    Args:
        steps: Updates.
        max_text_length: In tokens; no caption with its images may be longer.
    """
    return {
        "name": "contrast",
        "mixture": {"captions": 0.75, "text": 0.25},
        "steps": steps,
        "batch_size": 32,
        "max_text_length": max_text_length,
        "max_documents": 1,
        "learning_rates": {"vision": _RATE, "projection": _RATE, "language": _RATE},
        "objective": {"lambda_vlm": 1.0, "lambda_contrast": 1.0},
    }


def text_stage(steps: int = 100) -> dict:
    """Return the stage that teaches the decoder alone to write."""
    return {
        "name": "base",
        "mixture": _TEXT_MIX,
        "steps": steps,
        "batch_size": 8,
        "learning_rates": {r"language_decoder/(?!.*cross_attention).*": _RATE},
    }


def align_stage(learning_rates: dict, steps: int = 150) -> dict:
    """Return the stage that ties the encoder to the decoder by captions."""
    return {
        "name": "align",
        "mixture": {"captions": 1.0},
        "steps": steps,
        "batch_size": 8,
        "learning_rates": learning_rates,
    }


def sft_stage(learning_rates: dict, steps: int = 400, **more) -> dict:
    """Return the stage that teaches to answer, with text mixed in."""
    return {
        "name": "sft",
        "mixture": {"questions": 0.7, "text": 0.3},
        "steps": steps,
        "batch_size": 8,
        "learning_rates": learning_rates,
        **more,
    }


def report(run: str | Path, sources: str | Path) -> dict:
    """Write `checks.json` into a run's folder, print it and return it.

    Held-out losses in nats per token at the end of each stage: of captions, of the same with blank
    pictures, and of text.
    """
    run, held_out = Path(run), Path(sources) / "held_out"
    captions, text = (open_source(held_out / name) for name in ("captions.jsonl", "text.txt"))
    checks = {}
    print(f"{'after':<10}{'captions':>10}{'blank':>10}{'text':>10}")
    for stage in json.loads((run / CONFIG_FILE).read_text())["stages"]:
        model = load_model(str(run / stage["name"] / MODEL_FILE))
        length = model.processor.max_text_length
        losses = {
            "caption_loss": held_out_loss(model, captions, length),
            "caption_loss_blank": held_out_loss(model, captions, length, blank_images=True),
            "text_loss": held_out_loss(model, text, length),
        }
        checks[stage["name"]] = losses
        print(f"{stage['name']:<10}" + "".join(f"{loss:>10.4f}" for loss in losses.values()))
    (run / "checks.json").write_text(json.dumps(checks, indent=1))
    return checks
