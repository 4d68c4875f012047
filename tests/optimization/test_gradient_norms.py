import keras
import numpy as np
import pytest
from part_models import apply, full, model_with

from dl_techniques.optimization import ComponentOptimizer

SGD = keras.optimizers.SGD


@pytest.mark.parametrize("clip", [None, 1.0])
def test_norms_by_component_and_in_all_before_clipping(clip):
    variables = model_with("a", "b", "c").trainable_variables
    # In another order than the variables'.
    optimizer = ComponentOptimizer({"b": SGD(0.1), "a|c": SGD(0.1)}, clip)
    assert optimizer.gradient_norms == {"b": 0.0, "a|c": 0.0, "all": 0.0}
    apply(optimizer, variables, [full(2), full(6), full(1.5)])
    norms = optimizer.gradient_norms
    # Roots of 4 squares each: 4, 12 and 3.
    assert norms == {"b": pytest.approx(12), "a|c": pytest.approx(5), "all": pytest.approx(13)}
    assert all(type(norm) is float for norm in norms.values())
    apply(optimizer, variables, [full(0), None, full(-1)])
    assert optimizer.gradient_norms == {"b": 0.0, "a|c": 2.0, "all": 2.0}


def test_norms_are_those_of_the_mean_over_tokens_and_stay_while_accumulating():
    variables = model_with("a", "b").trainable_variables
    optimizer = ComponentOptimizer({"a": SGD(0.1), "b": SGD(0.1)}, accumulation_steps=2)
    for gradient, weight in [(4.0, 1.0), (8.0, 3.0)]:
        apply(optimizer, variables, [full(gradient), full(0)], weight)
    expected = {"a": pytest.approx(14), "b": 0.0, "all": pytest.approx(14)}
    assert optimizer.gradient_norms == expected
    apply(optimizer, variables, [full(1), full(1)], 1.0)
    assert optimizer.gradient_norms == expected


def test_all_is_no_pattern():
    with pytest.raises(ValueError, match=r"'all' names the total.*'\(all\)'"):
        ComponentOptimizer({"all": SGD(0.1)})
    optimizer = ComponentOptimizer({"(all)": SGD(0.1)})
    apply(optimizer, model_with("all").trainable_variables, [full(1)])
    assert optimizer.gradient_norms == {"(all)": 2.0, "all": 2.0}


def test_norms_of_bfloat16_gradients_are_float32():
    variable = keras.Variable(np.zeros((300, 300), "float32"), dtype="bfloat16", name="a")
    optimizer = ComponentOptimizer({"a": SGD(0.1)})
    gradient = keras.ops.cast(np.ones((300, 300), "float32"), "bfloat16")
    optimizer.apply([gradient], [variable])
    assert optimizer.gradient_norms["all"] == pytest.approx(300, rel=1e-6)
