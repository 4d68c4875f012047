import keras
import numpy as np
import pytest
from keras import ops
from part_models import apply, full, model_with, values

from dl_techniques.optimization import AdamW, ComponentOptimizer, learning_rate_schedule_builder

SGD = keras.optimizers.SGD


def test_each_component_has_its_own_rate():
    variables = model_with("vision_encoder", "decoder").trainable_variables
    assert [v.path for v in variables] == ["vlm/vision_encoder/kernel", "vlm/decoder/kernel"]
    schedule = learning_rate_schedule_builder(
        {"type": "linear_decay", "learning_rate": 0.5, "decay_steps": 2}
    )
    optimizer = ComponentOptimizer({"decoder": SGD(schedule), "vision_encoder": SGD(0.125)})
    assert optimizer.learning_rates == {"decoder": 0.5, "vision_encoder": 0.125}
    apply(optimizer, variables, [full(1), full(1)])
    vision, decoder = values(variables)
    np.testing.assert_array_equal(vision, full(0.875))
    np.testing.assert_array_equal(decoder, full(0.5))
    assert optimizer.learning_rates == {"decoder": 0.25, "vision_encoder": 0.125}


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_clip_is_by_the_norm_over_all_components(accumulation_steps):
    variables = model_with("a", "b").trainable_variables
    optimizer = ComponentOptimizer(
        {"a": SGD(1.0), "b": SGD(1.0)},
        global_clipnorm=5.0,
        accumulation_steps=accumulation_steps,
    )
    # Norms 6 and 8 make 10: both are halved, though each alone would be scaled differently.
    for _ in range(accumulation_steps):
        apply(optimizer, variables, [full(3), full(4)], weight=7.0)
    first, second = values(variables)
    np.testing.assert_allclose(first, full(1 - 1.5), rtol=1e-6)
    np.testing.assert_allclose(second, full(1 - 2.0), rtol=1e-6)
    # Norm 1 is below the limit and stays exactly as it is.
    for _ in range(accumulation_steps):
        apply(optimizer, variables, [full(0.5), full(0)], weight=1.0)
    np.testing.assert_allclose(values(variables)[0], full(1 - 2.0), rtol=1e-6)


def test_accumulation_is_weighted_by_tokens_and_nothing_moves_in_between():
    variables = model_with("a", "b").trainable_variables
    schedule = learning_rate_schedule_builder(
        {"type": "linear_decay", "learning_rate": 1.0, "decay_steps": 4}
    )
    optimizer = ComponentOptimizer(
        {"a": SGD(schedule, momentum=0.5), "b": AdamW(0.1)}, accumulation_steps=3
    )
    optimizer.build(variables)
    inner = [v for part in optimizer.optimizers for v in part.variables]
    before = values([*variables, *inner])
    for weight, gradient in [(1.0, 4.0), (5.0, -2.0)]:
        apply(optimizer, variables, [full(gradient), full(gradient)], weight)
        for old, new in zip(before, values([*variables, *inner]), strict=True):
            np.testing.assert_array_equal(old, new)
        assert int(ops.convert_to_numpy(optimizer.iterations)) == 0
    assert optimizer.pending_batches == 2
    apply(optimizer, variables, [full(9.0), full(9.0)], 2.0)
    # (1 * 4 - 5 * 2 + 2 * 9) / 8 = 1.5
    np.testing.assert_allclose(values(variables)[0], full(1 - 1.5), rtol=1e-6)
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 1
    assert [int(ops.convert_to_numpy(o.iterations)) for o in optimizer.optimizers] == [1, 1]
    assert optimizer.learning_rates["a"] == 0.75
    assert optimizer.pending_batches == 0
    # The second round starts from zero sums: velocity 0.5 * -1.5 - 0.75 * 2.
    for _ in range(3):
        apply(optimizer, variables, [full(2.0), full(2.0)], 4.0)
    np.testing.assert_allclose(values(variables)[0], full(-0.5 - 0.75 - 1.5), rtol=1e-6)


def test_weight_defaults_to_one_and_ends_with_its_context():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": SGD(1.0)}, accumulation_steps=2)
    with optimizer.token_weight(100.0), optimizer.token_weight(3.0):
        pass
    apply(optimizer, variables, [full(1.0)])
    apply(optimizer, variables, [full(4.0)], 2.0)
    np.testing.assert_allclose(values(variables)[0], full(1 - 3.0), rtol=1e-6)


def test_manual_application():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": AdamW(0.1)}, accumulation_steps=None)
    optimizer.build(variables)
    optimizer.apply_accumulated()  # nothing is pending: no decay, no step
    np.testing.assert_array_equal(values(variables)[0], full(1.0))
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 0
    for _ in range(5):
        apply(optimizer, variables, [full(1.0)], 2.0)
    np.testing.assert_array_equal(values(variables)[0], full(1.0))
    assert optimizer.pending_batches == 5
    optimizer.apply_accumulated(variables)
    np.testing.assert_allclose(values(variables)[0], full(1 - 0.1 * 0.004 - 0.1), rtol=2e-6)
    assert optimizer.pending_batches == 0
    with pytest.raises(ValueError, match="accumulation_steps"):
        ComponentOptimizer({"a": SGD(1.0)}).apply_accumulated(variables)


def test_flush_of_an_incomplete_round():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": SGD(1.0)}, accumulation_steps=4)
    apply(optimizer, variables, [full(1.0)], 1.0)
    apply(optimizer, variables, [full(3.0)], 3.0)
    optimizer.apply_accumulated()
    np.testing.assert_allclose(values(variables)[0], full(1 - 2.5), rtol=1e-6)


def test_batches_without_tokens_do_not_divide_by_zero():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": SGD(1.0)}, global_clipnorm=1.0, accumulation_steps=2)
    for _ in range(2):
        apply(optimizer, variables, [full(0.0)], 0.0)
    np.testing.assert_array_equal(values(variables)[0], full(1.0))
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 1


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_missing_gradients_count_as_zero(accumulation_steps):
    updated = []
    for missing in (None, full(0.0)):
        variables = model_with("a", "b").trainable_variables
        optimizer = ComponentOptimizer(
            {"a": AdamW(0.1), "b": SGD(0.1)}, accumulation_steps=accumulation_steps
        )
        for gradients in ([full(1.0), full(1.0)], [missing, full(1.0)]) * accumulation_steps:
            apply(optimizer, variables, gradients, 1.0)
        updated.append(values(variables))
    np.testing.assert_array_equal(*updated)
    with pytest.raises(ValueError, match="No gradients"):
        optimizer.apply([None, None], variables)


def test_no_sums_without_accumulation():
    variables = model_with("a", "b").trainable_variables
    counts = []
    for steps in (1, 2):
        optimizer = ComponentOptimizer({"a": SGD(1.0), "b": SGD(1.0)}, accumulation_steps=steps)
        optimizer.build(variables)
        counts.append(len(optimizer.variables))
    assert counts[1] - counts[0] == 2 + 2


def test_bfloat16_variables_are_accumulated_in_float32():
    variable = keras.Variable(full(0.0), dtype="bfloat16", name="a")
    optimizer = ComponentOptimizer({"a": SGD(1.0)}, accumulation_steps=257)
    gradient = ops.cast(full(1.0), "bfloat16")
    for _ in range(256):
        optimizer.apply([gradient], [variable])
    # bfloat16 would be stuck at 256: this is the batch that it could not add.
    optimizer.apply([gradient * 258], [variable])
    got = ops.convert_to_numpy(ops.cast(variable, "float32"))
    np.testing.assert_array_equal(got, full(-2.0))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["vision"], r"2 trainable variables match no component pattern.*vlm/vision_encoder"),
        (["vision_encoder"], "1 trainable variables match no.*vlm/decoder/kernel"),
        (["vision_encoder", "decoder", "kernel"], "matches several.*vision_encoder.*kernel"),
        (["vision_encoder", "decoder", "block_0"], r"\['block_0'\] match no.*vlm/decoder/kernel"),
    ],
)
def test_patterns_must_divide_the_variables(patterns, message):
    optimizer = ComponentOptimizer({pattern: SGD(1.0) for pattern in patterns})
    with pytest.raises(ValueError, match=message):
        optimizer.build(model_with("vision_encoder", "decoder").trainable_variables)


def test_patterns_are_regular_expressions_over_whole_parts_of_paths():
    names = ["encoder", "encoder_2", "old_encoder", "block_1", "block_12"]
    variables = model_with(*names).trainable_variables
    rates = {"encoder": 0.5, r"encoder_\d|old_encoder": 0.25, "block_1": 1.0, "block_12": 2.0}
    optimizer = ComponentOptimizer({pattern: SGD(rate) for pattern, rate in rates.items()})
    apply(optimizer, variables, [full(1.0)] * 5)
    moved = [1 - float(value[0, 0]) for value in values(variables)]
    assert moved == [0.5, 0.25, 0.25, 1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": {}}, "at least one"),
        ({"components": {"(": 1}}, "no regular expression"),
        ({"components": {"": 1}}, "non-empty string"),
        ({"components": {"a": 1e-3}}, "plain Keras optimizer.*float"),
        ({"components": {"a": "wrapped"}}, "plain Keras optimizer.*LossScaleOptimizer"),
        ({"components": {"a": "clipped"}}, "global_clipnorm=1.0.*all components together"),
        ({"components": {"a": "shared", "b": "shared"}}, "share one optimizer"),
        ({"components": {"a": "plain"}, "global_clipnorm": 0.0}, "global_clipnorm must be > 0"),
        ({"components": {"a": "plain"}, "accumulation_steps": 0}, "accumulation_steps must be"),
    ],
)
def test_bad_arguments(arguments, message):
    shelf = {
        "plain": SGD(1.0),
        "shared": SGD(1.0),
        "clipped": SGD(1.0, global_clipnorm=1.0),
        "wrapped": keras.optimizers.LossScaleOptimizer(SGD(1.0)),
    }
    components = {k: shelf.get(v, v) for k, v in arguments["components"].items()}
    with pytest.raises(ValueError, match=message):
        ComponentOptimizer(**{**arguments, "components": components})


def test_other_variables_than_those_of_build_are_refused():
    variables = model_with("a", "b").trainable_variables
    optimizer = ComponentOptimizer({"a": SGD(1.0), "b": SGD(1.0)})
    optimizer.build(variables)
    with pytest.raises(ValueError, match="not those the optimizer was built with"):
        apply(optimizer, variables[:1], [full(1.0)])
    with pytest.raises(ValueError, match="1 gradients for 2"):
        apply(optimizer, None, [full(1.0)])


def test_config_round_trip():
    schedule = learning_rate_schedule_builder(
        {"type": "linear_decay", "learning_rate": 0.5, "decay_steps": 2}
    )
    optimizer = ComponentOptimizer(
        {"a": AdamW(schedule, weight_decay=0.1), "b": SGD(0.125)},
        global_clipnorm=2.0,
        accumulation_steps=3,
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, ComponentOptimizer)
    assert isinstance(again.optimizers[0], AdamW)
    assert again.get_config() == optimizer.get_config()
    assert again.learning_rates == {"a": 0.5, "b": 0.125}
