"""Tiny sources and streams that several test files share."""

import io

import numpy as np
from PIL import Image

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

LENGTH = 96


def processor(tiled=False, image_size=4, tokens_per_image=2):
    tokenizer = CharacterTokenizer(128)
    (image_id,) = tokenizer.add_special_tokens(["<image>"])
    tokenizer.add_special_tokens(["<fake_token_around_image>", "<global-img>"])
    tokenizer.add_special_tokens([f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)])
    return VQADataProcessor(
        image_size,
        LENGTH,
        tokenizer=tokenizer,
        image_token_id=image_id,
        tokens_per_image=tokens_per_image,
        image_processor=Idefics3ImageProcessor(4, 8) if tiled else None,
    )


def png(seed, size=(6, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(name, question, answer, images=(), source=""):
    return {
        "id": str(name),
        "source": source,
        "images": list(images),
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
    }


def sources(short=40, long=25):
    """Short answers about pictures, long ones without, and samples with several parts."""
    return {
        "short": [sample(k, f"what {k}?", "ab"[k % 2], [png(k)]) for k in range(short)],
        "long": [sample(k, f"why {k}?", f"because {k} " * (1 + k % 5)) for k in range(long)],
    }


def stream(
    used=None,
    epochs=None,
    workers=0,
    augment=None,
    kind="thread",
    tiled=False,
    cache=None,
    quarantine=None,
    **settings,
):
    """Return a stream over tiny sources, by default those of `sources`."""
    shares = {"short": 0.3, "long": 0.7}
    used = sources() if used is None else used
    return TrainingStream(
        used,
        processor(tiled),
        Mixture({name: shares.get(name, 1.0) for name in used}, epochs=epochs, seed=3),
        StreamSettings(**{"length": LENGTH, "batch_size": 2, "lookahead": 4, **settings}),
        augment,
        workers,
        kind,
        cache,
        quarantine,
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(one, other):
    assert len(one) == len(other)
    for (a, b), (c, d) in zip(one, other, strict=True):
        np.testing.assert_array_equal(b, d)
        assert a.keys() == c.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], c[key], key)


def brighter(pixels, rng):
    return np.minimum(pixels.astype(np.int32) + rng.integers(50), 255).astype(np.uint8)


def answers(batches):
    """Return what is learned, document by document, as text."""
    found = []
    for inputs, labels in batches:
        for row in range(len(labels)):
            segments = inputs["segment_ids"][row]
            for k in range(1, segments.max(initial=0) + 1):
                learned = labels[row][(segments == k) & (labels[row] != -100)]
                found.append("".join(chr(i) for i in learned if i > 2).strip())
    return found
