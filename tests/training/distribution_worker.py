"""What the tests of distribution run in processes of their own: `TASK FOLDER [NUMBERS ...]`.

Each task writes `FOLDER/TASK.json` (its numbers) and `FOLDER/*.safetensors` (states).
"""

import contextlib
import json
import pathlib
import sys

TASK, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
NUMBERS = [int(number) for number in sys.argv[3:]]
TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

import conftest  # noqa: F401, E402  Quiet libraries, exact products, the compilation cache.
import keras  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from tiny_models import IMAGE_ID, IMAGE_SIZE, fill, random_ids, random_images  # noqa: E402

from dl_techniques.losses.contrastive_loss import (  # noqa: E402
    ContrastiveLoss,
    SigmoidContrastiveLoss,
)
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss  # noqa: E402
from dl_techniques.models.lora import train_only  # noqa: E402
from dl_techniques.models.nano_vlm import NanoVLM  # noqa: E402
from dl_techniques.optimization import optimizer_builder  # noqa: E402
from dl_techniques.training.distribution import (  # noqa: E402
    device_bytes,
    make_distribution,
    mirrored_strategy,
)
from dl_techniques.training.local_rows import LocalRows, local_rows  # noqa: E402
from dl_techniques.training.processes import (  # noqa: E402
    any_process,
    assign_full,
    full_value,
    initialize_processes,
    is_main_process,
    whole_weights,
)
from dl_techniques.training.setup import component_optimizer  # noqa: E402

STEPS = 20
ROWS, LENGTH = 8, 16


def new_model():
    """Return a compiled model whose matrices divide by 8; attention has 4 heads, 2 of them kv."""
    model = NanoVLM(
        vision_config={
            "img_size": IMAGE_SIZE,
            "patch_size": 4,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        language_config={
            "hidden_dim": 32,
            "num_layers": 1,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_dim": 64,
        },
        projection_config={"input_dim": 16, "output_dim": 32, "scale_factor": 2},
        vocab_size=32,
        image_token_id=IMAGE_ID,
    )
    parts = {
        name: optimizer_builder({"type": "adamw", "weight_decay": 0.1}, 3e-3)
        for name in ("vision", "projection")
    }
    parts["language"] = optimizer_builder({"type": "sgd", "momentum": 0.9}, 1e-1)
    # The clipping is at work in the first steps.
    model.compile(component_optimizer(parts, global_clipnorm=1.0), NanoVLMLoss())
    if keras.backend.backend() == "jax":  # Elsewhere the first step does.
        model.optimizer.build(model.trainable_variables)
    return fill(model)


def batch(step, rows=ROWS):
    """Return rows of two packed documents, some padded, each with another number of labels."""
    generator = np.random.default_rng(step)
    ids = random_ids(rows, LENGTH, seed=step)
    ids[:, :4] = IMAGE_ID
    place = np.arange(LENGTH)
    real = place < generator.integers(12, LENGTH + 1, (rows, 1))
    segments = np.where(real, 1 + (place >= 10), 0).astype("int32")
    learned = real & (place >= generator.integers(5, 12, (rows, 1)))
    inputs = {
        "images": random_images(rows, 1, seed=step),
        "num_images": np.ones(rows, "int32"),
        "text_tokens": np.where(real, ids, 0),
        "attention_mask": real,
        "segment_ids": segments,
        "positions": np.where(place >= 10, place - 10, place) * np.ones_like(ids),
    }
    return inputs, np.where(learned, ids, -100)


class Batches(keras.utils.PyDataset):
    """The batches of two steps, of which the second has three rows."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return batch(i, ROWS if i == 0 else 3)


def train(model, first=0, last=STEPS):
    return [float(model.train_on_batch(*local_rows(batch(i)))) for i in range(first, last)]


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


def save_state(model, name):
    values = {f"{i:04d}": full_value(v) for i, v in enumerate(variables_of(model))}
    if is_main_process():
        save_file(values, FOLDER / f"{name}.safetensors")


def load_state(model, name):
    values = load_file(FOLDER / f"{name}.safetensors")
    for i, variable in enumerate(variables_of(model)):
        assign_full(variable, values[f"{i:04d}"])


def held(model):
    """Return what the devices hold, and what they should: every matrix's share, all of the rest."""
    found = {name: vars(device) for name, device in device_bytes(model).items()}
    sizes = {}
    for kind, variables in (("weights", model.variables), ("optimizer", model.optimizer.variables)):
        matrices = sum(v.value.nbytes for v in variables if len(v.shape) > 1)
        sizes[kind] = {"all": sum(v.value.nbytes for v in variables), "matrices": matrices}
    return {"devices": found, "sizes": sizes}


def held_when_frozen(model):
    """Return what the devices hold after a step in which only the projection learned."""
    train_only(model, ["modality_projection"])
    parts = {"projection": optimizer_builder({"type": "sgd"}, 1e-2)}
    model.compile(component_optimizer(parts), NanoVLMLoss())
    model.train_on_batch(*batch(0))
    return held(model)


def specs(model):
    return {v.path: [*map(str, v.value.sharding.spec)] for v in model.trainable_variables}


def on_one_device():
    """The losses that all others must give, with and without a stop."""
    model = new_model()
    losses = train(model)
    short = float(model.test_on_batch(*batch(7, 3)))
    load_state(model, "fsdp_middle")
    return {"losses": losses, "resumed": train(model, STEPS // 2), "short": short}


def with_layout(layout, model_parallel=1):
    distribution = make_distribution(layout, model_parallel=model_parallel)
    constrained = []
    whole_channels = distribution.get_tensor_layout

    def get_tensor_layout(path):
        found = whole_channels(path)
        if found is not None:
            constrained.append(path)
        return found

    distribution.get_tensor_layout = get_tensor_layout
    with distribution.scope():
        model = new_model()
        result = {"losses": train(model, last=STEPS // 2)}
        if layout == "fsdp":
            save_state(model, "fsdp_middle")
        result["losses"] += train(model, STEPS // 2)
        if layout == "fsdp":
            save_state(model, "fsdp_end")
        result |= {"held": held(model), "specs": specs(model), "constrained": constrained}
        if layout == "fsdp":
            result["held_frozen"] = held_when_frozen(model)
        if layout == "data":
            result |= uneven_batches(model)
    return result


def uneven_batches(model):
    """What becomes of a batch of 3 rows on 8 devices."""
    found = {"short": float(model.test_on_batch(*local_rows(batch(7, 3))))}
    start = [full_value(v) for v in variables_of(model)]
    for i in range(2):
        model.train_on_batch(*local_rows(Batches()[i]))
    by_hand = [full_value(v) for v in model.trainable_variables]
    for variable, value in zip(variables_of(model), start, strict=True):
        assign_full(variable, value)
    model.fit(LocalRows(Batches()), verbose=0, shuffle=False)
    fitted = [full_value(v) for v in model.trainable_variables]
    found["fit"] = max(float(np.abs(a - b).max()) for a, b in zip(by_hand, fitted, strict=True))
    try:
        model.train_on_batch(*batch(7, 3))
    except ValueError as error:
        found["error"] = str(error)
    return found


class TwoTowers(keras.Model):
    """Embeds two arrays with one matrix each; the loss compares all rows with all rows."""

    def __init__(self, loss):
        super().__init__()
        self.towers = [keras.layers.Dense(8, name=f"tower_{i}") for i in range(2)]
        self.pair_loss = loss
        for layer in (*self.towers, loss):
            layer.build((None, 8))
        self.built = True

    def call(self, x):
        return [tower(part) for tower, part in zip(self.towers, (x["a"], x["b"]), strict=True)]

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return self.pair_loss(*y_pred)


def contrastive(loss, layout):
    distribution = make_distribution(layout)
    keras.distribution.set_distribution(distribution)
    model = fill(TwoTowers(loss(name="pairs")))
    model.compile(keras.optimizers.SGD(0.5))
    generator = np.random.default_rng(0)
    rows = {name: generator.standard_normal((ROWS, 8)).astype("float32") for name in "ab"}
    losses = [float(model.train_on_batch(rows, np.zeros(ROWS))) for _ in range(3)]
    keras.distribution.set_distribution(None)
    return losses


def layouts():
    """Eight devices of one process."""
    results = {
        "data": with_layout("data"),
        "fsdp": with_layout("fsdp"),
        "tensor": with_layout("tensor", 4),
        "fsdp+tensor": with_layout("fsdp+tensor", 2),
        "single": on_one_device(),
    }
    for loss in (ContrastiveLoss, SigmoidContrastiveLoss):
        results[loss.__name__] = {kind: contrastive(loss, kind) for kind in ("single", "data")}
    return results


def processes(process, count, port):
    """One of several processes with two devices each, which go on where another run was saved."""
    initialize_processes(f"127.0.0.1:{port}", count, process)
    keras.distribution.set_distribution(make_distribution("fsdp"))
    model = new_model()
    load_state(model, "fsdp_middle")
    losses = train(model, STEPS // 2)
    save_state(model, "processes_end")
    with whole_weights(model):
        if is_main_process():
            model.save(FOLDER / "processes.keras")
    losses_after = train(model, STEPS, STEPS + 1)  # The weights are split again.
    kernel = model.language_decoder.blocks[0].mlp.up_proj.kernel
    kernel.assign(np.full(kernel.shape, 3.0))
    return {
        "losses": losses,
        "after": losses_after,
        "held": held(model),
        "rows": len(local_rows(batch(0))[1]),
        "main": is_main_process(),
        "assigned": bool((full_value(kernel) == 3.0).all()),
        "stop": [any_process(process == 1), any_process(False)],
    }


def mirrored():
    """TensorFlow: two replicas, and one device."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = mirrored_strategy()
    results = {"replicas": strategy.num_replicas_in_sync}
    for kind in ("one", "two"):
        with strategy.scope() if kind == "two" else contextlib.nullcontext():
            model = new_model()
        losses = train(model)
        results[kind] = {
            "losses": losses,
            "short": float(model.test_on_batch(*batch(7, 3))),
            "fit": model.fit(Batches(), verbose=0, shuffle=False).history["loss"],
            "evaluate": float(model.evaluate(Batches(), verbose=0)),
        }
    return results


if __name__ == "__main__":
    tasks = {"layouts": layouts, "processes": processes, "mirrored": mirrored}
    result = tasks[TASK](*NUMBERS)
    name = "_".join([TASK, *map(str, NUMBERS[:1])])
    (FOLDER / f"{name}.json").write_text(json.dumps(result))
