"""One whole training run from a dict of settings: data, model, training, held-out score."""

import json
from pathlib import Path

import keras

from dl_techniques.datasets.augmentation import compose, random_crop, random_flip
from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.samples import group_by_image, split_by_image
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import (
    answer_questions,
    exact_match,
    message_text,
)
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.model_size import without_weights
from dl_techniques.models.nano_vlm import NanoVLM, create_nanovlm
from dl_techniques.optimization import learning_rate_schedule_builder, optimizer_builder
from dl_techniques.preprocessing.images import load_image
from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer, load_tokenizer
from dl_techniques.training.recipes import check_config
from dl_techniques.training.setup import COMPONENTS, component_optimizer
from dl_techniques.training.trainer import NanoVLMTrainer
from dl_techniques.utils.logger import logger
from dl_techniques.visualization.contact_sheet import contact_sheet

IMAGE_TOKEN = "<|image|>"
FINAL_MODEL = "nanovlm_final.keras"
AUGMENTATIONS = {"flip": random_flip, "crop": lambda: random_crop(4)}


def run_training(config: dict, resume: bool = False) -> dict:
    """Train, evaluate on held-out pictures and save a folder that `load_checkpoint` reads.

    The folder holds `nanovlm_final.keras`, the processor and tokenizer, `config.json`,
    `history.json`, `loss_curve.png`, `training_state.safetensors`, `results.json` (exact match
    with the pictures and with blank ones, per kind of question), `contact_sheet.png` and the
    `pictures` on it.

    Args:
        config: The settings; see `recipes.default_config`.
        resume: Go on where the run in `output_dir` stopped.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: for unknown or contradicting settings, before anything is computed.
    """
    check_config(config)
    skeleton = without_weights(lambda: _make_model(config))
    _make_optimizer(config, batches=1)
    augment = _augmentation(config["augment"])
    keras.config.set_dtype_policy(_precision(config["precision"]))
    keras.utils.set_random_seed(config["seed"])
    folder = Path(config["output_dir"])
    train, held_out = load_data(config)
    processor = _make_processor(config, train, skeleton)
    held_out = _usable(processor, held_out)
    model = _make_model(
        config, vocab_size=processor.vocab_size, image_token_id=processor.image_token_id
    )
    dataset = processor.create_dataset(
        train,
        config["batch_size"],
        seed=config["seed"],
        max_turns=config["max_turns"],
        # The questions about shapes are made to be asked in their order.
        shuffle_turns=config["data"] != "shapes" and not config["isolate_turns"],
        isolate_turns=config["isolate_turns"],
        augment=augment,
    )
    trainer = NanoVLMTrainer(
        model,
        NanoVLMLoss(label_smoothing=config["label_smoothing"]),
        _make_optimizer(config, config["epochs"] * len(dataset)),
        folder,
    )
    if not resume:  # A run that cannot be resumed must leave the folder as it was.
        _save_settings(folder, processor, config)
    logger.info("%s parameters, %s", f"{model.count_params():,}", dataset.report)
    trainer.fit(
        dataset,
        config["epochs"],
        log_every=config["log_every"],
        save_every_epochs=config["save_every_epochs"],
        resume=resume,
    )
    if resume:
        _save_settings(folder, processor, config)
    return _evaluate(model, processor, held_out, folder)


def _save_settings(folder, processor, config):
    processor.save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def load_checkpoint(folder: str | Path) -> tuple[NanoVLM, VQADataProcessor]:
    """Return the trained model and its processor, which is the model's too.

    Raises:
        ValueError: if the folder lacks a file.
    """
    path = Path(folder) / FINAL_MODEL
    if not path.is_file():
        raise ValueError(f"{folder} is no checkpoint folder: {path} does not exist.")
    model = keras.saving.load_model(path, compile=False)
    model.processor = VQADataProcessor.load(folder)
    model.training_data, model.results = _history(Path(folder))
    return model, model.processor


def _history(folder):
    """Return what the run's model learned from, in one sentence, and its scores."""
    settings, results = folder / "config.json", folder / "results.json"
    if not (settings.is_file() and results.is_file()):
        return None, None
    config = json.loads(settings.read_text())
    data = Path(config["data"]).name
    text = f"The data set {data!r}, {config['epochs']} epochs, seed {config['seed']}, from scratch."
    return text, json.loads(results.read_text())


def load_data(config: dict) -> tuple[list, list]:
    """Return (training samples, held-out samples), disjoint in their pictures.

    Raises:
        ValueError: if the data cannot be read, or one side would be empty.
    """
    if config["data"] == "shapes":
        size, seed = config["picture_size"], config["seed"]
        count = -(-config["held_out_questions"] // 4)
        return (
            generate_shapes("train", config["pictures"], seed, size),
            _first_questions(generate_shapes("heldout", count, seed, size), config),
        )
    samples = group_by_image(read_samples(config["data"]))
    train, held_out = split_by_image(samples, config["held_out_share"], config["seed"])
    if not train or not held_out:
        raise ValueError(
            f"held_out_share={config['held_out_share']} splits the {len(samples)} pictures into "
            f"{len(train)} for training and {len(held_out)} held out; both must have some."
        )
    return train, _first_questions(held_out, config)


def _first_questions(samples, config):
    """Return the first samples, as many as hold `held_out_questions` questions."""
    chosen, count = [], 0
    for sample in samples:
        if count >= config["held_out_questions"]:
            break
        chosen.append(sample)
        count += sum(message["role"] == "user" for message in sample["messages"])
    return chosen


def _usable(processor, samples):
    """Return the samples that can be asked; the data set counts, names and limits the others."""
    bad = processor.create_dataset(samples, shuffle=False).report.items
    names = {item.sample_id for item in bad}
    return [sample for sample in samples if sample["id"] not in names]


def _augmentation(names):
    unknown = sorted(set(names) - set(AUGMENTATIONS))
    if unknown:
        raise ValueError(f"Unknown augment {unknown}: choose from {sorted(AUGMENTATIONS)}.")
    return compose(*(AUGMENTATIONS[name]() for name in names))


def _precision(name):
    if name != "auto":
        return name
    if keras.backend.backend() == "torch":  # Where keras.distribution does not exist.
        import torch

        on_gpu = torch.cuda.is_available()
    else:
        on_gpu = any("gpu" in device.lower() for device in keras.distribution.list_devices())
    return "mixed_float16" if on_gpu else "float32"


def _make_processor(config, train, model):
    if config["tokenizer"] is not None:
        tokenizer = load_tokenizer(config["tokenizer"])
        tokenizer.add_special_tokens([IMAGE_TOKEN])
    else:
        texts = [message_text(message) for sample in train for message in sample["messages"]]
        frame = [f"Question: {text} Answer: {text}" for text in texts]
        tokenizer = SentencePieceTokenizer.train(
            frame, config["vocab_size"], special_tokens=[IMAGE_TOKEN]
        )
    return VQADataProcessor(
        model.vision_encoder.img_size,
        config["max_text_length"],
        tokenizer=tokenizer,
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN),
        tokens_per_image=model.tokens_per_image,
    )


def _make_model(config, **vocabulary):
    if config["model"] != "custom":
        return create_nanovlm(config["model"], **vocabulary)
    parts = {k: config[k] for k in ("vision_config", "language_config", "projection_config")}
    if None in parts.values():
        raise ValueError(f"model='custom' needs a dict for each of {sorted(parts)}.")
    return NanoVLM(**parts, **vocabulary)


def _make_optimizer(config, batches):
    steps = max(1, batches // config["accumulation_steps"])
    warmup = round(config["warmup_share"] * steps)

    def optimizer(learning_rate):
        schedule = learning_rate_schedule_builder(
            {
                "type": "cosine_decay",
                "warmup_steps": warmup,
                "warmup_start_lr": 1e-8,
                "learning_rate": learning_rate,
                "decay_steps": max(1, steps - warmup),
                "alpha": config["alpha"],
            }
        )
        return optimizer_builder(config["optimizer"], schedule)

    rates = config["learning_rates"]
    if set(rates) != set(COMPONENTS):
        raise ValueError(f"learning_rates need the keys {sorted(COMPONENTS)}, got {sorted(rates)}.")
    return component_optimizer(
        {name: optimizer(rate) for name, rate in rates.items()},
        config["clipnorm"],
        config["accumulation_steps"],
    )


def _evaluate(model, processor, held_out, folder):
    longest = max(
        len(processor.tokenizer.encode(" " + message_text(message)))
        for sample in held_out
        for message in sample["messages"]
        if message["role"] == "assistant"
    )
    seen, blank = (
        answer_questions(model, processor, held_out, 64, longest + 1, blank_images)
        for blank_images in (False, True)
    )
    scores, blind = exact_match(seen), exact_match(blank)
    results = {
        kind: {"exact_match": score, "blank_images": blind[kind][0], "questions": count}
        for kind, (score, count) in scores.items()
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    rows = [
        f"{kind:12s} {r['exact_match']:8.1%} {r['blank_images']:8.1%} {r['questions']:7d}"
        for kind, r in results.items()
    ]
    print(f"{'held out':12s} {'exact':>8s} {'blank':>8s} {'n':>7s}", *rows, sep="\n")
    shown = seen[:: max(1, len(seen) // 20)][:20]
    contact_sheet(shown, folder / "contact_sheet.png")
    (folder / "pictures").mkdir(exist_ok=True)
    for i, item in enumerate(shown):
        if not item.images:
            continue
        load_image(item.images[0]).save(folder / "pictures" / f"{i:02d}.png")
    return results
