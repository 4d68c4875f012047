"""The data of a run: what is learned, and the held-out questions."""

from pathlib import Path
from typing import Any

from dl_techniques.datasets.augmentation import Augmentation, compose, random_crop, random_flip
from dl_techniques.datasets.epoch_stream import EpochStream
from dl_techniques.datasets.expected_batches import expected_batches
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.mixture_recipes import MIXTURES
from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.recipe_sources import open_folder, open_recipe
from dl_techniques.datasets.samples import group_by_image, split_by_image
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.training.local_rows import data_shard, local_rows
from dl_techniques.utils.logger import logger

AUGMENTATIONS = {"flip": random_flip, "crop": lambda: random_crop(4)}
HUB, ALL_SOURCES = "hub", "all"


def load_data(config: dict) -> tuple[list, list]:
    """Return (training samples, held-out samples).

    With a mixture there are no training samples here. Held-out ones are `evaluation_data`'s; where
    it is None and there is no mixture, pictures are held out that are not learned.

    Raises:
        ValueError: if the data cannot be read, or one side would be empty.
    """
    path, seed = config["evaluation_data"], config["seed"]
    held_out = None if path is None else group_by_image(read_samples(path))
    if config["mixture"] is not None:
        return [], _first_questions(held_out or [], config)
    if config["data"] == "shapes":
        size = config["picture_size"]
        count = -(-config["held_out_questions"] // 4)
        train = generate_shapes("train", config["pictures"], seed, size)
        if held_out is None:
            held_out = generate_shapes("heldout", count, seed, size)
        return train, _first_questions(held_out, config)
    train = group_by_image(read_samples(config["data"]))
    if held_out is None:
        pictures, share = len(train), config["held_out_share"]
        train, held_out = split_by_image(train, share, seed)
        if not train or not held_out:
            raise ValueError(
                f"held_out_share={share} splits the {pictures} pictures into {len(train)} for "
                f"training and {len(held_out)} held out; both must have some."
            )
    return train, _first_questions(held_out, config)


def stage_data(config: dict, processor, samples: list) -> tuple[Any, int, int]:
    """Return (what a stage takes batches from, its most steps, how many to expect).

    Args:
        config: The stage's settings.
        processor: The model's `VQADataProcessor`.
        samples: What is learned without a mixture.
    """
    if config["mixture"] is not None:
        stream = _mixture_stream(config, processor)
        return stream, config["steps"], _expected_steps(config, stream)
    augment = augmentation(config["augment"])
    dataset = processor.create_dataset(
        samples,
        config["batch_size"],
        seed=config["seed"],
        max_turns=config["max_turns"],
        # The questions about shapes are made to be asked in their order.
        shuffle_turns=config["data"] != "shapes" and not config["isolate_turns"],
        isolate_turns=config["isolate_turns"],
        augment=augment,
        # Pictures are augmented before they are cut.
        cache_images=augment is None or processor.image_processor.max_tiles == 1,
        max_text_length=config["max_text_length"],
    )
    logger.info("%s", dataset.report)
    batches = config["epochs"] * len(dataset)
    steps = config["steps"] or max(1, batches // config["accumulation_steps"])
    return EpochStream(dataset, local_rows), steps, steps


def check_data(config: dict) -> None:
    """Refuse what contradicts itself, before anything is read.

    Raises:
        ValueError: an unknown augmentation, or a mixture without steps.
    """
    augmentation(config["augment"])
    if config["mixture"] is None:
        return
    if config["steps"] is None:
        raise ValueError("A mixture has no end: say how many steps to take.")
    if isinstance(config["mixture"], str) and config["mixture"] not in (*MIXTURES, ALL_SOURCES):
        raise ValueError(
            f"Unknown mixture {config['mixture']!r}: choose from {sorted(MIXTURES)}, "
            f"{ALL_SOURCES!r}, or give a dict of shares."
        )
    if config["isolate_turns"] or config["max_turns"] is not None:
        raise ValueError("Rows of a mixture are packed: leave out isolate_turns and max_turns.")


def augmentation(names: list[str]) -> Augmentation | None:
    """Return the augmentation of these names; None: there are none.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(names) - set(AUGMENTATIONS))
    if unknown:
        raise ValueError(f"Unknown augment {unknown}: choose from {sorted(AUGMENTATIONS)}.")
    return compose(*(AUGMENTATIONS[name]() for name in names)) if names else None


def _mixture_stream(config, processor) -> TrainingStream:
    index, count = data_shard()
    settings = StreamSettings(
        length=config["max_text_length"],
        batch_size=config["batch_size"],
        max_tiles=config["max_tiles"],
        max_documents=config["max_documents"],
        seed=config["seed"],
        process_index=index,
        process_count=count,
    )
    shares = config["mixture"]
    if isinstance(shares, str):
        shares = None if shares == ALL_SOURCES else MIXTURES[shares]
    number = f"_{index}" if count > 1 else ""
    unit = "rows" if shares is None else "answer_tokens"
    return TrainingStream(
        _sources(config),
        processor,
        Mixture(shares, unit, config["max_epochs"], seed=config["seed"]),
        settings,
        augmentation(config["augment"]),
        quarantine=Path(config["output_dir"]) / f"quarantine_{config['name']}{number}.jsonl",
    )


def _expected_steps(config, stream) -> int:
    """Return how many steps a stage on a mixture will take, as far as can be known."""
    batches, most = expected_batches(stream), config["steps"]
    if batches is None:
        if stream.ends:
            logger.warning(
                "Stage %s: its sources are read over the network, so how many steps %g epochs have "
                "is not known. Warm-up and decay are planned for steps=%d; lower that if the data "
                "has fewer.",
                *(config["name"], config["max_epochs"], most),
            )
        return most
    steps = max(1, batches // config["accumulation_steps"])
    logger.info(
        "Stage %s: %g epochs of the data have about %d steps, at most %d are taken.",
        *(config["name"], config["max_epochs"], steps, most),
    )
    return min(steps, most)


def _sources(config) -> dict:
    mixture, folder = config["mixture"], config["data"]
    if folder == HUB:
        if mixture not in MIXTURES:
            raise ValueError(f"data='hub' needs a mixture of {sorted(MIXTURES)}, not {mixture!r}.")
        return open_recipe(mixture, streaming=True)
    if mixture == ALL_SOURCES:
        if not Path(folder).is_dir():
            raise ValueError(f"'{folder}' is no folder; expected one that holds the sources.")
        return open_folder(folder, sorted({path.stem for path in Path(folder).iterdir()}))
    return open_folder(folder, MIXTURES[mixture] if isinstance(mixture, str) else mixture)


def _first_questions(samples, config):
    """Return the first samples, as many as hold `held_out_questions` questions."""
    chosen, count = [], 0
    for sample in samples:
        if count >= config["held_out_questions"]:
            break
        chosen.append(sample)
        count += sum(message["role"] == "user" for message in sample["messages"])
    return chosen
