"""Tiny models, batches and helpers that several test files share."""

import zlib

import keras
import numpy as np

from dl_techniques.models.nano_vlm import NanoVLM

VOCAB = 32
IMAGE_ID = 31
TOKENS_PER_IMAGE = 4
PATCHES_PER_SIDE = 4
IMAGE_SIZE = 16


def relative_path(variable, owner) -> str:
    """Return the variable's path below its owner, whose own name may be numbered."""
    return variable.path.removeprefix(owner.name + "/")


def fill(owner, seed: int = 0):
    """Give every weight a value that depends on its path alone, the same on every backend."""
    for variable in owner.trainable_variables:
        path = relative_path(variable, owner)
        generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
        value = 0.2 * generator.standard_normal(variable.shape)
        if path.endswith(("scale", "gamma")):
            value = 1.0 + value
        variable.assign(value.astype("float32"))
    return owner


def numpy(x):
    """Return float32 for a float tensor of any dtype, else the array as it is."""
    if "float" in keras.backend.standardize_dtype(x.dtype):
        x = keras.ops.cast(x, "float32")
    return keras.ops.convert_to_numpy(x)


def run(function, *args):
    """Return function(*args) in NumPy; on JAX as one compiled program, not one per operation."""
    if keras.backend.backend() == "jax":
        import jax

        function = jax.jit(function)
    elif keras.backend.backend() == "torch":
        import torch

        function = torch.no_grad()(function)
    out = function(*args)
    return keras.tree.map_structure(numpy, out)


def logits(model, inputs):
    """Return the model's logits; on JAX compiled once per batch shape, with present weights."""
    if keras.backend.backend() != "jax":
        return run(model, inputs)
    import jax

    model.batch_checks.check(inputs)
    key = (
        model.name,
        *sorted((k, np.shape(v), np.asarray(v).dtype.str) for k, v in inputs.items()),
    )
    compiled = model.__dict__.setdefault("_compiled_calls", {})
    if key not in compiled:
        compiled[key] = jax.jit(lambda t, n, x: model.stateless_call(t, n, x)[0])
    values = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )
    return numpy(compiled[key](*values, inputs))


def tiny_config(fusion: str = "placeholder", **changes) -> dict:
    """Return the constructor arguments of `tiny_nanovlm`."""
    return {
        "vision_config": {
            "img_size": IMAGE_SIZE,
            "patch_size": IMAGE_SIZE // PATCHES_PER_SIDE,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
        },
        "language_config": {
            "hidden_dim": 24,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_dim": 32,
            "max_positions": 64,
        },
        "projection_config": {"input_dim": 16, "output_dim": 24, "scale_factor": 2},
        "vocab_size": VOCAB,
        "image_token_id": IMAGE_ID if fusion == "placeholder" else None,
        **changes,
    }


def tiny_nanovlm(fusion: str = "placeholder", seed: int = 0, **changes) -> NanoVLM:
    """Return a model of 16-pixel images, 4 tokens per image, 32 ids, with filled weights."""
    return fill(NanoVLM(**tiny_config(fusion, **changes)), seed)


def random_images(*shape, seed: int = 0):
    """Return float32[*shape, 16, 16, 3] in [-1, 1]."""
    generator = np.random.default_rng(seed)
    size = (*shape, IMAGE_SIZE, IMAGE_SIZE, 3)
    return generator.uniform(-1, 1, size).astype("float32")


def random_ids(*shape, seed: int = 0):
    """Return int32 ids of text (never the placeholder)."""
    return np.random.default_rng(seed).integers(3, IMAGE_ID, shape).astype("int32")


def place_images(ids, starts):
    """Return a copy of `ids` with a run of placeholders at each (row, column) of `starts`."""
    ids = ids.copy()
    for row, column in starts:
        ids[row, column : column + TOKENS_PER_IMAGE] = IMAGE_ID
    return ids


def mixed_batch() -> dict:
    """Return 3 rows of 16 ids: two neighbouring images; one image; none. Rows 1, 2 are padded."""
    ids = place_images(random_ids(3, 16), [(0, 1), (0, 5), (1, 3)])
    lengths = np.array([16, 12, 9])
    mask = np.arange(16) < lengths[:, None]
    return {
        "text_tokens": np.where(mask, ids, 0),
        "images": random_images(3, 2),
        "num_images": np.array([2, 1, 0], "int32"),
        "attention_mask": mask,
    }


def text_batch() -> dict:
    """Return the rows of `mixed_batch` without placeholders: for prefix fusion."""
    batch = mixed_batch()
    return {**batch, "text_tokens": np.where(batch["attention_mask"], random_ids(3, 16), 0)}


def row_alone(batch: dict, row: int) -> dict:
    """Return one row of a batch without its padding and without absent images."""
    real = batch["attention_mask"][row]
    images = batch["images"][row : row + 1, : batch["num_images"][row]]
    alone = {"text_tokens": batch["text_tokens"][row : row + 1, real]}
    return {**alone, "images": images} if images.shape[1] else alone


def left_padded(batch: dict) -> dict:
    """Return the batch with every row's real tokens moved to its end."""
    order = np.argsort(batch["attention_mask"], axis=1, kind="stable")
    moved = {
        k: np.take_along_axis(batch[k], order, axis=1) for k in ("text_tokens", "attention_mask")
    }
    return {**batch, **moved}
