"""Teaches a tiny model by the contrast alone to find the caption of a picture among many.

    KERAS_BACKEND=jax python benchmarks/contrastive_retrieval.py [--steps 300] [--candidates 128]

Pictures of coloured shapes and captions that say what stands where, such as "large red star top
left". Scenes are held out by what they show: no caption of the test is ever seen in training, and
all of them differ. Prints, for InfoNCE and the sigmoid loss, the share of held-out pictures whose
own caption is the nearest of all: by chance, before and after training. 64 pictures a step.
"""

import argparse
import time

import keras
import numpy as np

from dl_techniques.datasets.shapes_scene import (
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    draw_plan,
    draw_scene,
    render_scene,
    split_of,
)
from dl_techniques.evaluation.alignment import alignment
from dl_techniques.losses import NanoVLMLoss
from dl_techniques.losses.contrastive_loss import pool_text
from dl_techniques.models.contrast import caption_states, image_vectors
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.models.objectives import Objective, image_counts

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
WORDS = ("<pad>", "<image>", *SIZES, *COLOURS, *SHAPES, *ROWS, *COLUMNS)
PAD, IMAGE = 0, 1
SIDE, PATCH, WIDTH = 48, 8, 64
IMAGE_TOKENS = (SIDE // PATCH // 2) ** 2
LENGTH = IMAGE_TOKENS + 5 * MAX_OBJECTS


def scenes(split: str, count: int, seed: int) -> list:
    """Return scenes of a split that all differ."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        scene = draw_scene(rng, draw_plan(rng))
        if split_of(scene) == split:
            found[scene] = None
    return list(found)


def examples(split: str, count: int, seed: int) -> tuple[dict, np.ndarray]:
    """Return inputs and labels: a picture's placeholders, then its caption."""
    rng = np.random.default_rng(seed)
    ids = np.full((count, LENGTH), PAD, "int32")
    images = np.empty((count, SIDE, SIDE, 3), "float32")
    ids[:, :IMAGE_TOKENS] = IMAGE
    for row, scene in enumerate(scenes(split, count, seed)):
        images[row] = np.asarray(render_scene(scene, SIDE, rng)) / 127.5 - 1.0
        words = [
            WORDS.index(word)
            for item in scene
            for word in (item.size, item.colour, item.shape, ROWS[item.row], COLUMNS[item.column])
        ]
        ids[row, IMAGE_TOKENS : IMAGE_TOKENS + len(words)] = words
    inputs = {"images": images, "text_tokens": ids, "attention_mask": ids != PAD}
    return inputs, np.where(ids > IMAGE, ids, -100).astype("int32")


def new_model(contrast: str) -> NanoVLM:
    """Return a tiny model that learns by the contrast alone."""
    keras.utils.set_random_seed(0)
    model = NanoVLM(
        vision_config={
            "img_size": SIDE,
            "patch_size": PATCH,
            "embed_dim": WIDTH,
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        language_config={
            "hidden_dim": WIDTH,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_dim": 2 * WIDTH,
        },
        projection_config={"input_dim": WIDTH, "output_dim": WIDTH, "scale_factor": 2},
        vocab_size=len(WORDS),
        image_token_id=IMAGE,
    )
    model.objective = Objective(lambda_vlm=0.0, lambda_contrast=1.0, contrast=contrast)
    model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0), NanoVLMLoss())
    return model


def retrieval(model: NanoVLM, inputs: dict, labels: np.ndarray) -> float:
    """Return the share of pictures whose nearest caption, by cosine, is their own."""
    images = image_vectors(model.encode_vision(inputs["images"])[:, None], image_counts(inputs))
    texts = pool_text(caption_states(model, inputs), labels >= 0)
    images, texts = map(keras.ops.convert_to_numpy, (images, texts))
    return alignment(images, texts)["image_to_text@1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=128, help="held-out captions")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    inputs, labels = examples("train", 8192, seed=1)
    held_out = examples("heldout", options.candidates, seed=2)
    chance = 1 / options.candidates
    print(f"{options.candidates} held-out captions, {options.steps} steps of {options.batch_size}")
    print(
        f"{'contrast':10s} {'chance':>8s} {'before':>8s} {'after':>8s} {'x chance':>9s} {'s':>6s}"
    )
    for contrast in ("infonce", "sigmoid"):
        model, rng, began = new_model(contrast), np.random.default_rng(0), time.perf_counter()
        before = retrieval(model, *held_out)
        for _ in range(options.steps):
            rows = rng.choice(len(labels), options.batch_size, replace=False)
            model.train_on_batch({name: x[rows] for name, x in inputs.items()}, labels[rows])
        after = retrieval(model, *held_out)
        seconds = time.perf_counter() - began
        print(
            f"{contrast:10s} {chance:8.4f} {before:8.4f} {after:8.4f} {after / chance:9.1f} "
            f"{seconds:6.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
