"""Samples: the one schema of rows, grouped by image and split by image."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dl_techniques.datasets.image_files import content_hash, source_key

Sample = dict[str, Any]


def make_sample(
    sample_id: str, source: str, images: Sequence[Any], turns: Iterable[tuple[str, str]]
) -> Sample:
    """Builds a sample from (question, answer) pairs.

    Returns:
        `{"images": [source, ...], "messages": [user, assistant, ...], "source", "id"}`. The
        images belong before the first question.
    """
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"images": list(images), "messages": messages, "source": source, "id": sample_id}


def normalize_sample(sample: Any, index: int) -> Sample:
    """Brings a row to the schema of `make_sample`.

    Args:
        sample: a dict with `messages` (and optionally `images`, `id`, `source`), or one with
            `image_path` (or `image`), `question` and `answer`.
        index: names the sample when it has no `id`.

    Raises:
        ValueError: the row has neither form; the message names it.
    """
    if not isinstance(sample, dict):
        raise ValueError(f"Sample {index} must be a dict, got {type(sample).__name__}.")
    name = str(sample.get("id", index))
    if "messages" in sample:
        messages = sample["messages"]
        if not isinstance(messages, (list, tuple)) or not all(
            isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
        ):
            raise ValueError(
                f"Sample {name}: messages must be a list of dicts with 'role' and 'content'."
            )
        rest = {"images": list(sample.get("images") or []), "id": name}
        return {"source": "", **sample, **rest}
    missing = {"question", "answer"} - sample.keys()
    if missing:
        raise ValueError(
            f"Sample {name} has the keys {sorted(map(str, sample))}; expected 'messages' (with "
            "'images'), or 'image_path', 'question' and 'answer'."
        )
    images = [sample[key] for key in ("image_path", "image") if sample.get(key) is not None]
    turns = [(sample["question"], sample["answer"])]
    return make_sample(name, str(sample.get("source", "")), images, turns)


def group_by_image(samples: Iterable[Sample]) -> list[Sample]:
    """Joins the samples about the same images into one multi-turn sample each.

    Each image is then encoded once. Order is kept: of the groups by their first sample, of the
    questions within. A joined sample keeps the id of its first one, all ids, one per question, in
    `question_ids`, and the samples that it is made of in `parts`; per-question lists (`kinds`,
    `references`) are joined where every part has them; the `answers` of a question become its
    entry in `references`. Samples without images, with a system turn or without a last answer stay
    alone.

    Args:
        samples: rows that `normalize_sample` takes.

    Returns:
        New samples; the given ones are not changed.

    Raises:
        ValueError: see `normalize_sample`.
    """
    groups: dict[Any, list[Sample]] = {}
    for index, raw in enumerate(samples):
        sample = normalize_sample(raw, index)
        roles = [message["role"] for message in sample["messages"]]
        alone = not sample["images"] or roles[:1] != ["user"] or roles[-1] != "assistant"
        images = tuple(source_key(image) for image in sample["images"])
        key = index if alone else (sample["source"], images)
        groups.setdefault(key, []).append(sample)
    return [_join(group) for group in groups.values()]


def parts_of(sample: Sample) -> list[Sample]:
    """Returns the samples that `group_by_image` joined to this one; of any other, itself."""
    return sample.get("parts", [sample])


def with_parts(sample: Sample, keep: Callable[[Sample], bool]) -> Sample | None:
    """Returns a sample with only those of its parts that are kept; None if there are none."""
    parts = parts_of(sample)
    kept = [part for part in parts if keep(part)]
    if len(kept) == len(parts):
        return sample
    return _join(kept) if kept else None


def _join(group: list[Sample]) -> Sample:
    parts = [part for sample in group for part in parts_of(sample)]
    group = [_with_references(sample) for sample in group]
    joined = {**group[0], "parts": parts}
    joined["messages"] = [message for sample in group for message in sample["messages"]]
    joined["question_ids"] = [name for sample in group for name in question_ids(sample)]
    for key in ("kinds", "references"):
        if all(key in sample for sample in group):
            joined[key] = [value for sample in group for value in sample[key]]
        else:
            joined.pop(key, None)
    return joined


def _with_references(sample: Sample) -> Sample:
    """Returns the sample of one question with its accepted answers as a per-question list."""
    if "answers" not in sample:
        return sample
    rest = {key: value for key, value in sample.items() if key != "answers"}
    return {"references": [sample["answers"]], **rest}


def question_ids(sample: Sample) -> list[str]:
    """Returns one id per user turn of a sample."""
    if "question_ids" in sample:
        return list(sample["question_ids"])
    count = sum(message["role"] == "user" for message in sample["messages"])
    name = str(sample["id"])
    return [name] if count == 1 else [f"{name}-{k}" for k in range(count)]


def split_by_image(
    samples: Iterable[Sample], held_out_share: float, seed: int = 0
) -> tuple[list[Sample], list[Sample]]:
    """Splits samples so that no image, by content, occurs on both sides.

    Samples that share an image, even over a chain of others, stay together. Which images are held
    out depends on their contents and the seed only, not on the order of the samples.

    Args:
        samples: rows that `normalize_sample` takes.
        held_out_share: share of the images (of the groups that must stay together) to hold out.
        seed: another seed holds out other images.

    Returns:
        (train, held out), both in the given order.

    Raises:
        ValueError: the share is not in [0, 1), or see `normalize_sample`.
    """
    if not 0.0 <= held_out_share < 1.0:
        raise ValueError(f"held_out_share must be in [0, 1), got {held_out_share}.")
    hashes: dict[tuple, str] = {}
    parents: dict[str, str] = {}
    first_images = []
    samples = [normalize_sample(sample, index) for index, sample in enumerate(samples)]
    for sample in samples:
        names = [_cached_hash(image, hashes) for image in sample["images"]]
        names = names or [hashlib.blake2b(repr(sample["messages"]).encode()).hexdigest()]
        for name in names:
            parents.setdefault(name, name)
            parents[_root(parents, name)] = _root(parents, names[0])
        first_images.append(names[0])
    members: dict[str, list[str]] = {}
    for name in parents:
        members.setdefault(_root(parents, name), []).append(name)

    def order(root: str) -> str:
        return hashlib.blake2b(f"{seed}:{min(members[root])}".encode()).hexdigest()

    chosen = sorted(members, key=order)[: round(held_out_share * len(members))]
    held_out = set(chosen)
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample, name in zip(samples, first_images, strict=True):
        sides[_root(parents, name) in held_out].append(sample)
    return sides


def _cached_hash(image: Any, hashes: dict[tuple, str]) -> str:
    key = source_key(image)
    if key not in hashes:
        hashes[key] = key[1] if key[0] == "content" else content_hash(image)
    return hashes[key]


def _root(parents: dict[str, str], name: str) -> str:
    while parents[name] != name:
        parents[name] = name = parents[parents[name]]
    return name
