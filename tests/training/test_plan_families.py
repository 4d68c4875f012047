"""Plans, work and measured steps of GhostVis and NVLM, beside JAX's products and XLA's bytes."""

import json
import math

import keras
import numpy as np
import pytest
from command_line import check_one_line_error
from only_on import only_on
from tiny_families import FAMILY_CASES, family_batch, family_model

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.families import MODEL_NAMES, TOTAL_PARAMS
from dl_techniques.models.lora import train_only
from dl_techniques.models.model_size import analyze_model_size
from dl_techniques.optimization import ComponentOptimizer, optimizer_builder
from dl_techniques.training.bench import BenchSettings
from dl_techniques.training.bench_steps import StepsToMeasure
from dl_techniques.training.flops import model_flops, step_products
from dl_techniques.training.plan import plan_training
from dl_techniques.training.skeletons import PARTS, make_skeleton


def products(jaxpr) -> int:
    """Return the operations of all matrix products of a traced function."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            count += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        for parameter in equation.params.values():
            inside = parameter if isinstance(parameter, list | tuple) else [parameter]
            count += sum(products(getattr(x, "jaxpr", x)) for x in inside if _is_traced(x))
    return count


def _is_traced(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def traced_products(model, inputs):
    """Return the products of the forward pass, and those that the gradient adds."""
    import jax
    from jax.interpreters import partial_eval

    trained = [v for v in model.variables if v.trainable]
    fixed = [v for v in model.variables if not v.trainable]

    def loss(values, others):
        assigned = [*zip(trained, values, strict=True), *zip(fixed, others, strict=True)]
        with keras.StatelessScope(assigned):
            return keras.ops.sum(keras.ops.square(model(inputs)))

    values = [v.value for v in trained], [v.value for v in fixed]
    forward = products(jax.make_jaxpr(loss)(*values).jaxpr)
    step = jax.make_jaxpr(jax.grad(loss))(*values).jaxpr
    used, _ = partial_eval.dce_jaxpr(step, [True] * len(step.outvars))
    return forward, products(used) - forward


EVERYTHING = list(PARTS)
TRAINED = [
    *((case, EVERYTHING) for case in FAMILY_CASES),
    *((case, ["modality_projection"]) for case in FAMILY_CASES),
    ("ghostvis", ["vision_resampler/block_1/attention/q_proj"]),
    ("ghostvis", ["modality_projection/vision_projector"]),
    ("nvlm_d", ["vision_compressor/attention/v_proj"]),
    ("nvlm_x", ["cross_attention"]),
    ("nvlm_x", ["cross_attention/attention/v_proj"]),
    ("nvlm_x", ["language_decoder/block_0/mlp/up_proj"]),
    ("nvlm_h", ["cross_attention/gate"]),
    ("nvlm_h", ["token_embedding"]),
]


@only_on("jax")
@pytest.mark.parametrize(("case", "trained"), TRAINED, ids=lambda x: x if type(x) is str else x[0])
def test_work_is_that_of_the_products_in_the_program(case, trained):
    model = family_model(case)
    train_only(model, trained)
    inputs, _ = family_batch(case)
    work = step_products(model, inputs)
    assert (work.forward, work.backward) == traced_products(model, inputs)
    assert work.backward > 0


def test_cross_attention_projects_the_context_once_and_reads_it_from_every_token():
    model = family_model("nvlm_x")
    rows, length = 2, 16
    images = {"text_tokens": (rows, length), "images": (rows, 3, 16, 16, 3)}
    inside = (
        step_products(model, images).forward
        - step_products(model, {**images, "images": None}).forward
    )
    context = 3 * 4  # Three images of four tokens.
    attention = 2 * rows * length * 32 * 32 * 2  # Queries and output.
    attention += 2 * rows * context * 32 * 16 * 2  # Keys and values of two heads of eight.
    attention += 4 * rows * 4 * length * context * 8
    vision = 2 * 6 * 16 * 48 * 16  # The patches of six images, then the encoder's block.
    vision += 2 * 6 * 16 * 16 * (4 * 16 + 2 * 32) + 4 * 6 * 16**2 * 16
    projector = 2 * 6 * 4 * (64 * 64 + 64 * 32)
    assert inside == attention + vision + projector


@pytest.mark.no_backend
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_named_model_is_planned(name):
    length, images = 1024, 1
    if name == "nanovlm_222m":
        length = 256
    plan = plan_training(name, 1, length, images, "mixed_bfloat16", device="gpu")
    assert plan.parameters == plan.trained == TOTAL_PARAMS[name]
    assert plan.weights == 4 * plan.parameters
    assert plan.peak > plan.weights + plan.optimizer
    # Of a large model nearly all work is two operations a weight and token.
    assert plan.forward > 1.2 * plan.parameters


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_bytes_of_a_model_are_counted(case):
    family, arguments, _ = FAMILY_CASES[case]
    named = {**arguments, "family": family.__name__}
    model = family_model(case)
    plan = plan_training(named, 2, 16, 2)
    assert plan.weights == 4 * model.count_params() == plan.gradients
    assert plan.batch == 4 * (2 * 2 * 16 * 16 * 3 + 2 * 2 * 16)
    inputs, _ = family_batch(case)
    assert plan.flops == model_flops(model, inputs)


def peak_of_xla(model, inputs, labels) -> int:
    """Return the bytes that XLA allots to a training step."""
    import jax

    parts = {part: optimizer_builder({"type": "adamw"}, 1e-4) for part in PARTS}
    model.compile(ComponentOptimizer(parts, 1.0), NanoVLMLoss())
    batch = (inputs, labels, None)
    model._symbolic_build(data_batch=batch)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([v.value for v in some] for some in variables)
    lowered = jax.jit(model.train_step, donate_argnums=0).lower(state, batch)
    compiled = lowered.compile({"xla_backend_optimization_level": 0})  # Of machine code alone.
    sizes = compiled.memory_analysis()
    allotted = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return allotted + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes


@only_on("jax")
@pytest.mark.parametrize("case", ["ghostvis", "nvlm_x"])
def test_the_peak_is_what_xla_allots(case):
    family, arguments, _ = FAMILY_CASES[case]
    language = {**arguments["language_config"], "mlp_dim": 128}
    vision = {**arguments["vision_config"], "img_size": 32}  # 64 patches.
    arguments = {**arguments, "language_config": language, "vision_config": vision}
    if case == "ghostvis":
        arguments["resampler_config"] = {"num_tokens": 16, "depth": 2, "num_heads": 4}
    inputs, labels = family_batch(case, rows=16, length=48)
    model = family(**arguments)
    inputs["images"] = np.zeros((16, 2, 32, 32, 3), "float32")
    if case == "ghostvis":
        inputs["text_tokens"][:, :32] = model.image_token_id
    plan = plan_training({**arguments, "family": family.__name__}, 16, 48, 2)
    assert plan.peak == pytest.approx(peak_of_xla(model, inputs, labels), rel=0.25)


@only_on("jax")
@pytest.mark.parametrize("case", ["ghostvis", "nvlm_h"])
def test_layouts_split_the_new_layers(case):
    family, arguments, _ = FAMILY_CASES[case]
    named = {**arguments, "family": family.__name__}
    alone = plan_training(named, 8, 16, 2)
    sharded = plan_training(named, 8, 16, 2, layout="fsdp", devices=8)
    tensor = plan_training(named, 8, 16, 2, layout="tensor", devices=8, model_parallel=2)
    assert sharded.weights < alone.weights / 3 and tensor.weights < 0.7 * alone.weights


def test_context_costs_memory_and_remat_saves_it():
    family, arguments, _ = FAMILY_CASES["nvlm_x"]
    named = {**arguments, "family": family.__name__}

    def activations(images, **options):
        return plan_training(named, 8, 48, images, device="gpu", **options).activations

    one = {"trainable": ["language_decoder"]}  # The encoder keeps nothing.
    assert activations(4, **one) > activations(1, **one) > activations(0, **one)
    assert activations(4, remat=True, **one) < 0.8 * activations(4, **one)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"family": "PaliGemma"}, "Unknown family 'PaliGemma': choose from NanoVLM, GhostVis"),
        ({"vocab_size": None}, "lack ['vocab_size']"),
        ({"vision_config": None}, "belong together"),
    ],
)
def test_sizes_that_name_no_model_are_refused(changes, part):
    with pytest.raises(ValueError) as raised:
        plan_training({**FAMILY_CASES["ghostvis"][1], **changes})
    assert part in str(raised.value)


@pytest.mark.parametrize(
    ("case", "length", "needed"), [("nvlm_x", 1, 2), ("nvlm_h", 5, 6), ("nvlm_d", 9, 10)]
)
def test_rows_must_have_room_for_tags_and_placeholders(case, length, needed):
    family, arguments, _ = FAMILY_CASES[case]
    with pytest.raises(ValueError, match=f"2 images need {needed} of the row's tokens"):
        plan_training({**arguments, "family": family.__name__}, 1, length, 2)


def test_a_decoder_alone_is_planned():
    alone = plan_training("qwen2_72b", length=512, images=3)
    assert make_skeleton("qwen2_72b").vision_encoder is None
    assert alone.parameters == analyze_model_size("nvlm_d_72b")["language_decoder"].parameters
    assert alone.tokens == 8 * 512 and alone.batch == 4 * 2 * 8 * 512


@pytest.mark.parametrize("case", ["ghostvis", "nvlm_x", "nvlm_h"])
def test_measured_steps_have_batches_that_the_model_takes(case, tmp_path):
    family, arguments, tokens = FAMILY_CASES[case]
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps({**arguments, "family": family.__name__}))
    steps = StepsToMeasure(BenchSettings("train", str(path), 2, 16, images=2))
    assert type(steps.model) is family
    steps.model.batch_checks.check(steps.inputs, steps.labels)
    used = {"ghostvis": 2 * tokens, "nvlm_x": 2, "nvlm_h": 2 + tokens}[case]
    assert steps.learned_tokens == 2 * (16 - used)
    assert np.isfinite(float(np.asarray(steps.model.test_on_batch(steps.inputs, steps.labels))[0]))


@pytest.mark.no_backend
def test_the_command_plans_by_name(command):
    code, out, _ = command("plan", "nvlm_h_72b", "--batch-size", 1, "--length", 2816, "--images", 7)
    assert code == 0 and out.splitlines()[1].endswith(f" of {80_373_448_074:,} parameters")
    check_one_line_error(command("plan", "nvlm_80b"), "Unknown model 'nvlm_80b'", "nvlm_x_72b")
