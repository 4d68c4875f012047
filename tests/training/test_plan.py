"""Plans of training steps: counted bytes, hand-counted work, layouts, the peak, and mistakes."""

import json
import math

import keras
import numpy as np
import pytest
from command_line import check_one_line_error
from only_on import only_on
from tiny_models import IMAGE_ID, place_images, random_ids, random_images, tiny_config, tiny_nanovlm

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.lora import train_only
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.optimization import ComponentOptimizer, optimizer_builder
from dl_techniques.training.flops import model_flops
from dl_techniques.training.plan import plan_training
from dl_techniques.training.skeletons import make_skeleton

BYTES = {"float32": 4, "int64": 8, "int32": 4, "bfloat16": 2, "bool": 1}
PARTS = ["vision_encoder", "language_decoder", "modality_projection"]
CASES = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "adafactor": {"optimizer": "adafactor"},
    "sgd": {"optimizer": "sgd", "precision": "mixed_bfloat16"},
    "averages": {"ema_decay": 0.9},
    "accumulated": {"accumulation_steps": 4},
    "frozen": {"trainable": ["language_decoder/block_1", "modality_projection"]},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "mixed_float16", "trainable": ["modality_projection"]},
}


def size(arrays):
    """Return the bytes of arrays that exist."""
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in arrays]
    return sum(BYTES[d] * math.prod(x.shape) for d, x in zip(dtypes, arrays, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_weights_gradients_and_optimizer_state_are_counted_to_the_byte(case):
    options = CASES[case]
    plan = plan_training(tiny_config(), 2, 16, **options)
    model = NanoVLM(**tiny_config(), dtype=options.get("precision", "float32"))
    patterns = options.get("trainable", PARTS)
    train_only(model, patterns)
    config = {"type": options.get("optimizer", "adamw")}
    optimizer = ComponentOptimizer(
        {pattern: optimizer_builder(config, 1e-4) for pattern in patterns},
        1.0,
        options.get("accumulation_steps", 1),
        options.get("ema_decay"),
    )
    if case == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    assert plan.weights == size([v.value for v in model.weights])
    assert plan.gradients == size([v.value for v in model.trainable_variables])
    assert plan.optimizer == size([v.value for v in optimizer.variables])
    assert plan.parameters == model.count_params()
    assert plan.trained == sum(math.prod(v.shape) for v in model.trainable_variables)


def test_gradients_of_a_real_step_are_as_large_as_planned():
    ids = place_images(random_ids(2, 16), [(0, 1), (1, 3)])
    trainable = ["language_decoder/block_1"]
    model = tiny_nanovlm()
    train_only(model, trainable)
    seen = []

    class Watched(ComponentOptimizer):
        def apply(self, grads, trainable_variables=None):
            seen.append(size(grads))
            return super().apply(grads, trainable_variables)

    optimizer = Watched({trainable[0]: optimizer_builder({"type": "adamw"}, 1e-4)})
    model.compile(optimizer, NanoVLMLoss())
    labels = np.where(ids == IMAGE_ID, -100, ids)
    model.train_on_batch({"images": random_images(2, 1), "text_tokens": ids}, labels)
    assert plan_training(tiny_config(), 2, 16, trainable=trainable).gradients == seen[-1] > 0


# Work of tiny_config(depth 1) on 2 rows of 16 ids with an image of 16 patches, 4 tokens each.
PATCHES = 2 * (2 * 16) * 48 * 16
VISION = 4 * 2 * 32 * 16 * 16 + 4 * 2 * 2 * 16**2 * 8 + 2 * 2 * 32 * 16 * 32
PROJECTION = 2 * (2 * 4) * 64 * 24
SCORES = 4 * 2 * 4 * 16**2 * 6
DECODER = 2 * 2 * 32 * 24 * 24 + 2 * 2 * 32 * 24 * 12 + SCORES + 3 * 2 * 32 * 24 * 32
HEAD = 2 * 32 * 24 * 32
FORWARD = PATCHES + VISION + PROJECTION + DECODER + HEAD


def one_block(**changes):
    config = tiny_config(**changes)
    config["vision_config"]["depth"] = config["language_config"]["num_layers"] = 1
    return config


@pytest.mark.parametrize(
    ("trainable", "backward"),
    [
        (None, 2 * FORWARD - PATCHES),
        (["language_decoder", "modality_projection"], PROJECTION + 2 * DECODER + 2 * HEAD),
        (["modality_projection"], PROJECTION + DECODER + SCORES + HEAD),
        (["language_decoder/norm"], HEAD),
    ],
)
def test_work_is_what_a_hand_counts(trainable, backward):
    plan = plan_training(one_block(), 2, 16, trainable=trainable)
    assert plan.forward == FORWARD
    assert plan.backward == backward
    assert plan.seconds(2e-12, 0.5) == FORWARD + backward


def test_work_of_a_model_and_of_its_batch():
    batch = {"text_tokens": random_ids(2, 16), "images": random_images(2)}
    model = NanoVLM(**one_block())
    assert model_flops(model, batch) == 3 * FORWARD - PATCHES
    text = {"text_tokens": (2, 16), "images": None}
    assert model_flops(model, text) == 3 * (DECODER + HEAD)
    # Prepended images are positions of the decoder too.
    prefix = make_skeleton(one_block(image_token_id=None))
    longer = model_flops(prefix, {"text_tokens": (2, 12), "images": (2, 1, 16, 16, 3)})
    assert longer == 3 * FORWARD - PATCHES


@pytest.mark.parametrize("images", [0, 1])
def test_the_plan_of_a_text_batch_has_no_vision(images):
    plan = plan_training(tiny_config(), 2, 16, images)
    assert plan.batch == 4 * (2 * 2 * 16 + images * 2 * 16 * 16 * 3)
    assert (plan.forward > 2 * DECODER + HEAD) == bool(images)
    assert plan.forward >= 2 * DECODER + HEAD


def test_what_saves_memory_saves_it_in_the_plan():
    config = tiny_config(vocab_size=8192)
    config["vision_config"]["depth"] = config["language_config"]["num_layers"] = 8

    def peak(**options):
        return plan_training(config, 8, 64, device="gpu", **options)

    plain, chunked = peak(), peak(chunk_size=32)
    assert chunked.peak < plain.peak
    assert chunked.activations > 0.9 * plain.activations
    assert peak(chunk_size=32, remat=True).activations < 0.2 * chunked.activations
    assert peak(flash_attention=True).activations < peak(flash_attention=False).activations
    half = peak(precision="mixed_bfloat16", flash_attention=True)
    assert half.weights == plain.weights
    assert half.activations < 0.8 * peak(flash_attention=True).activations
    frozen = peak(trainable=["language_decoder"])
    assert frozen.activations < plain.activations and frozen.optimizer < plain.optimizer
    assert plain.peak > plain.weights + plain.optimizer + plain.batch + plain.activations


@only_on("jax")
def test_the_peak_is_what_xla_allots():
    import jax

    config = one_block(vocab_size=2048, image_token_id=2047)
    config["language_config"] |= {"hidden_dim": 64, "mlp_dim": 256, "num_layers": 2}
    config["projection_config"]["output_dim"] = 64
    model = NanoVLM(**config)
    optimizers = {part: optimizer_builder({"type": "adamw"}, 1e-4) for part in PARTS}
    model.compile(ComponentOptimizer(optimizers, 1.0), NanoVLMLoss())
    ids = place_images(random_ids(16, 64), [(row, 0) for row in range(16)])
    ids[ids == IMAGE_ID] = 2047
    batch = ({"images": random_images(16, 1), "text_tokens": ids}, ids, None)
    model._symbolic_build(data_batch=batch)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([v.value for v in some] for some in variables)
    compiled = jax.jit(model.train_step, donate_argnums=0).lower(state, batch).compile()
    sizes = compiled.memory_analysis()
    allotted = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    allotted += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    plan = plan_training(config, 16, 64)
    assert plan.peak == pytest.approx(allotted, rel=0.25)


def weight_sizes():
    """Return the bytes of the matrices and of all other weights."""
    weights = make_skeleton(tiny_config()).weights
    matrices = sum(4 * math.prod(v.shape) for v in weights if len(v.shape) > 1)
    return matrices, sum(4 * math.prod(v.shape) for v in weights) - matrices


@only_on("jax")
def test_a_device_of_fully_sharded_training_holds_an_eighth():
    alone = plan_training(tiny_config(), 8, 16)
    plan = plan_training(tiny_config(), 8, 16, layout="fsdp", devices=8)
    matrices, vectors = weight_sizes()
    assert plan.weights == plan.gradients == matrices // 8 + vectors
    scalars = alone.optimizer - 2 * alone.weights
    assert plan.optimizer == 2 * plan.weights + scalars
    assert 8 * plan.batch == alone.batch
    assert (plan.forward, plan.tokens) == (alone.forward, alone.tokens)
    assert plan.seconds(1.0) == alone.seconds(1.0) / 8


@only_on("jax")
def test_frozen_weights_are_sharded_too():
    trained = plan_training(tiny_config(), 8, 16, layout="fsdp", devices=8)
    frozen = plan_training(
        tiny_config(), 8, 16, layout="fsdp", devices=8, trainable=["modality_projection"]
    )
    assert frozen.weights == trained.weights
    assert frozen.gradients < trained.gradients / 8


@only_on("jax")
def test_tensor_layouts_split_what_their_rules_say():
    matrices, vectors = weight_sizes()
    whole = 4 * (48 * 16 + 16 * 16)  # The patches' projection and positions.
    tensor = plan_training(tiny_config(), 8, 16, layout="tensor", devices=8, model_parallel=2)
    assert tensor.weights == (matrices - whole) // 2 + whole + vectors
    both = plan_training(tiny_config(), 8, 16, layout="fsdp+tensor", devices=8, model_parallel=2)
    assert both.weights == (matrices - whole) // 8 + whole // 4 + vectors


def test_data_parallel_devices_hold_everything_but_the_rows():
    alone = plan_training(tiny_config(), 8, 16)
    plan = plan_training(tiny_config(), 8, 16, layout="data", devices=4)
    assert (plan.weights, plan.optimizer) == (alone.weights, alone.optimizer)
    assert 4 * plan.batch == alone.batch


@pytest.mark.no_backend
def test_the_72b_model_is_planned_without_its_weights():
    plan = plan_training("nvlm_d_72b", 1, 2816, 7, "mixed_bfloat16", trainable=["language_decoder"])
    assert plan.parameters == 78_863_416_704
    assert plan.trained == 72_706_203_648
    assert plan.weights == 4 * plan.parameters
    assert plan.optimizer == pytest.approx(8 * plan.trained, rel=1e-6)


def test_recipes_and_files_name_models(tmp_path):
    demo = plan_training("demo", 2, 64)
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(tiny_config()))
    assert demo.parameters > plan_training(str(path), 2, 16).parameters


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"length": 3}, "1 images need 4 of the row's tokens, length=3"),
        ({"length": 65}, "65 positions are more than max_positions=64"),
        ({"precision": "float8"}, "Unknown precision 'float8'"),
        ({"optimizer": "adamax"}, "adamax"),
        ({"trainable": ["nothing"]}, "nothing"),
        ({"layout": "ring"}, "Unknown layout 'ring'"),
        ({"layout": "data", "devices": 3}, "batch_size=8 does not divide over 3 devices"),
        ({"devices": 2}, "'single' has 1 device"),
        ({"layout": "tensor", "devices": 4}, "model_parallel=1"),
        ({"device": "tpu"}, "'cpu' or 'gpu'"),
    ],
)
def test_mistakes_are_told(options, part):
    with pytest.raises(ValueError) as raised:
        plan_training(tiny_config(), **{"length": 16, **options})
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_prints_the_plan(command, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config()))
    arguments = ["--batch-size", 2, "--length", 16, "--peak-tflops", 1, "--mfu", 0.5]
    code, out, _ = command("plan", path, *arguments)
    plan = plan_training(tiny_config(), 2, 16)
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()[3:] if line}
    for name in ("weights", "gradients", "optimizer", "activations", "peak"):
        assert float(rows[name][1].replace(",", "")) == round(getattr(plan, name) / 1e6, 1)
    assert out.splitlines()[-1].endswith("s a step at 50% of 1 TFLOP/s per device")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["nanovlm_1t"], "Unknown model 'nanovlm_1t'"), (["demo", "--batch-size", 0], "batch_size=0")],
)
def test_mistakes_in_the_command_are_one_line(command, arguments, part):
    check_one_line_error(command("plan", *arguments), part)
