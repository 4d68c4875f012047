"""What is split where: the table of rules, plans without weights, and every refusal."""

import logging
import math

import keras
import pytest
from only_on import only_on
from tiny_models import logits, tiny_config
from toy_runs import ToyData, adam, micro_nanovlm, next_token_sums

from dl_techniques.losses import NanoVLMLoss
from dl_techniques.models.model_size import without_weights
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS, NanoVLM, create_nanovlm
from dl_techniques.training.distribution import (
    device_bytes,
    make_distribution,
    mirrored_strategy,
)
from dl_techniques.training.layouts import TENSOR_RULES, LayoutRule, dividing_axis
from dl_techniques.training.path_distribution import PathDistribution, layout_plan
from dl_techniques.training.processes import (
    initialize_processes,
)

BACKEND = keras.backend.backend()


def planned(data, model, shard_over_data=True, rules=TENSOR_RULES):
    """Return a distribution over devices that need not be there: nothing is placed on them."""
    names = [f"cpu:{i}" for i in range(data * model)]
    mesh = keras.distribution.DeviceMesh((data, model), ("data", "model"), names)
    return PathDistribution(mesh, shard_over_data, rules)


def share(plan, model, sizes):
    """Return the part of the weights that one device of a plan holds."""
    parts = {
        path: math.prod(sizes[axis] for axis in axes if axis is not None)
        for path, axes in plan.items()
    }
    held = sum(math.prod(v.shape) / parts[v.path] for v in model.variables)
    return held / model.count_params()


@pytest.fixture(scope="module", params=sorted(NANOVLM_CONFIGS))
def skeleton(request):
    return without_weights(lambda: create_nanovlm(request.param))


def test_eight_devices_hold_an_eighth_of_every_published_model(skeleton):
    distribution = planned(8, 1, rules=None)
    plan = layout_plan(distribution, skeleton)
    assert distribution.undivided == {}
    assert 1 / 8 <= share(plan, skeleton, distribution.size) < 1.01 / 8


def test_the_table_names_every_matrix_of_every_published_model(skeleton):
    distribution = planned(1, 2, shard_over_data=False)
    plan = layout_plan(distribution, skeleton)
    heads = {skeleton.language_decoder.blocks[0].attention.num_heads % 2 == 0}
    left = {path.split("/")[-2] for path in distribution.undivided}
    assert left == (set() if heads == {True} else {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert share(plan, skeleton, distribution.size) < 0.75
    vectors = [v.path for v in skeleton.variables if len(v.shape) < 2]
    assert vectors and all(not any(plan[path]) for path in vectors)


def test_matrices_are_split_once_along_each_axis_of_the_mesh():
    model = without_weights(lambda: NanoVLM(**tiny_config()))
    plan = layout_plan(planned(2, 4), model)
    block = "language_decoder/block_1/"
    assert plan[block + "attention/q_proj/kernel"] == ("data", "model")
    # Two key-value heads are not cut into four.
    assert plan[block + "attention/k_proj/kernel"] == ("data", None)
    assert plan[block + "attention/o_proj/kernel"] == ("model", "data")
    assert plan[block + "mlp/up_proj/kernel"] == ("data", "model")
    assert plan[block + "mlp/down_proj/kernel"] == ("model", "data")
    assert plan[block + "input_norm/scale"] == (None,)
    assert plan["language_decoder/token_embedding/embeddings"] == ("model", "data")
    assert plan["modality_projection/proj/kernel"] == ("model", "data")
    assert plan["vision_encoder/patch_embedding/patch_projection/kernel"] == ("data", None)
    assert plan["vision_encoder/patch_embedding/position_embedding"] == ("data", None)


def test_the_first_axis_that_divides_is_taken():
    assert dividing_axis((6, 8), (0, 1), 4) == 1
    assert dividing_axis((8, 8), (0, 1), 4) == 0
    assert dividing_axis((6, 10), (0, 1), 4) is None
    assert dividing_axis((6, 8), (), 4) is None
    assert dividing_axis((8, 12), (1,), 4, heads=4) == 1
    assert dividing_axis((8, 12), (1,), 4, heads=6) is None


def test_a_vocabulary_that_does_not_divide_is_split_by_width():
    model = without_weights(lambda: NanoVLM(**tiny_config(vocab_size=33)))
    plan = layout_plan(planned(1, 4, shard_over_data=False), model)
    assert plan["language_decoder/token_embedding/embeddings"] == (None, "model")


def test_untied_heads_are_split_over_the_vocabulary():
    config = tiny_config()
    config["language_config"] |= {"tie_embeddings": False}
    plan = layout_plan(planned(1, 4, False), without_weights(lambda: NanoVLM(**config)))
    assert plan["language_decoder/token_embedding/reverse_embeddings"] == (None, "model")


def two_dense_layers():
    return keras.Sequential(
        [keras.Input((8,)), *(keras.layers.Dense(8, name=name) for name in ("first", "second"))]
    )


def test_matrices_without_a_rule_are_listed():
    model = two_dense_layers()
    with pytest.raises(
        ValueError, match=r"2 matrices: \w+/first/kernel \(8, 8\), \w+/second/kernel"
    ):
        layout_plan(planned(1, 2), model)
    own = (LayoutRule("first/kernel", (1,)), LayoutRule("second/kernel", ()))
    plan = layout_plan(planned(1, 2, False, rules=own), model)
    kernels = {path.split("/", 1)[1]: axes for path, axes in plan.items() if "kernel" in path}
    assert kernels == {"first/kernel": (None, "model"), "second/kernel": (None, None)}


def test_frozen_variables_need_no_rule():
    model = two_dense_layers()
    model.trainable = False
    assert set(layout_plan(planned(2, 2), model).values()) == {(None, None), (None,)}


@only_on("jax")
def test_a_matrix_without_a_rule_stops_the_models_constructor():
    with planned(1, 1).scope(), pytest.raises(ValueError, match=r"1 matrices: \w+/first/kernel"):
        two_dense_layers()


@only_on("jax")
def test_one_device_holds_everything():
    with make_distribution("fsdp", devices=1).scope():
        model = micro_nanovlm()
        model.compile(adam(), NanoVLMLoss())
    ((device, before),) = device_bytes(model).items()
    model.optimizer.build(model.trainable_variables)
    ((_, held),) = device_bytes(model).items()
    assert device == "cpu:0" and before.weights == held.weights
    assert held.weights == sum(v.value.nbytes for v in model.variables)
    assert before.optimizer < held.weights < 2 * held.weights < held.optimizer


@only_on("jax")
def test_what_is_not_split_is_said_once(caplog):
    distribution = planned(3, 1, rules=None)
    layout_plan(distribution, without_weights(lambda: NanoVLM(**tiny_config(vocab_size=33))))
    with caplog.at_level(logging.WARNING, "dl_techniques"):
        for _ in range(2):
            distribution.get_data_layout((3, 4))
    (record,) = caplog.records
    assert "vision_encoder/block_*/attention/q_proj/kernel along 'data'" in record.getMessage()
    assert "block_0" not in record.getMessage()
    assert "token_embedding" not in record.getMessage()


@only_on("jax")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "ddp"}, "Unknown layout 'ddp': choose from single, data, fsdp, tensor"),
        ({"layout": "data", "devices": 2}, r"devices=2 must be some of the 1 here: \['cpu:0'\]"),
        ({"layout": "data", "devices": 0}, "devices=0 must be some"),
        ({"layout": "data", "devices": ["cpu:0", "cpu:0"]}, "must be some of the 1 here"),
        ({"layout": "tensor"}, "model_parallel=1 does not fit 1 devices"),
        ({"layout": "tensor", "model_parallel": 2}, "model_parallel=2 does not fit 1 devices"),
        ({"layout": "fsdp", "model_parallel": 2}, "the other layouts have 1"),
        ({"layout": "single", "devices": 1}, "takes no devices"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_distribution(**arguments)


def test_one_device_needs_no_distribution():
    assert make_distribution("single") is None


@only_on("tensorflow", "torch")
def test_what_needs_jax_says_so():
    with pytest.raises(ValueError, match="needs the JAX backend"):
        make_distribution("fsdp")
    with pytest.raises(ValueError, match="need the JAX backend"):
        initialize_processes("localhost:1", 2, 0)
    with pytest.raises(ValueError, match="needs JAX"):
        device_bytes(None)


@only_on("jax", "torch")
def test_what_needs_tensorflow_says_so():
    with pytest.raises(ValueError, match="needs the TensorFlow backend"):
        mirrored_strategy()


@only_on("tensorflow")
@pytest.mark.parametrize("devices", [2, 0, ["GPU:7"]])
def test_replicas_need_devices_that_are_there(devices):
    with pytest.raises(ValueError, match="must be some of the"):
        mirrored_strategy(devices)


@only_on("tensorflow")
def mirrored(optimizer=adam, loss=NanoVLMLoss, inside=True):
    """Return a model compiled under one replica, the optimizer inside of the scope or not."""
    strategy = mirrored_strategy(1)
    early = None if inside else optimizer()
    with strategy.scope():
        model = micro_nanovlm()
        model.compile(early or optimizer(), loss())
    return model, strategy


@only_on("tensorflow")
def test_one_replica_trains_too():
    model, strategy = mirrored()
    assert strategy.num_replicas_in_sync == 1
    inputs, labels = ToyData()[0]
    total, _, count = next_token_sums(logits(model, inputs), labels)
    assert float(model.train_on_batch(inputs, labels)) == pytest.approx(total / count, rel=1e-5)


@only_on("tensorflow")
def test_what_replicas_cannot_share_is_refused():
    batch = ToyData()[0]
    model, strategy = mirrored()
    with strategy.scope(), pytest.raises(ValueError, match="outside of strategy.scope"):
        model.train_on_batch(*batch)
    model, _ = mirrored(inside=False)
    with pytest.raises(ValueError, match="'component_optimizer' was created outside of"):
        model.train_on_batch(*batch)
    model, _ = mirrored(loss=keras.losses.SparseCategoricalCrossentropy)
    with pytest.raises(ValueError, match="share NanoVLMLoss alone, .*sparse_categorical"):
        model.train_on_batch(*batch)
