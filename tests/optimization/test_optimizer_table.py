import keras
import numpy as np
import pytest
from part_models import model_with

from dl_techniques.optimization import (
    Adafactor,
    AdamW,
    ComponentOptimizer,
    learning_rate_schedule_builder,
    optimizer_table,
)

LossScaleOptimizer = keras.optimizers.LossScaleOptimizer


def counter_bytes(optimizer):
    """Bytes of the iteration count, int32 or int64 by backend."""
    return np.dtype(optimizer.iterations.dtype).itemsize


def variables():
    return [
        keras.Variable(np.ones((3, 5), "float32"), name="a"),
        keras.Variable(np.ones((4, 2), "float32"), dtype="bfloat16", name="b"),
        keras.Variable(np.ones(7, "float32"), name="a"),
    ]


def components():
    schedule = learning_rate_schedule_builder(
        {"type": "cosine_decay", "learning_rate": 0.5, "decay_steps": 9, "warmup_steps": 9}
    )
    return {"b": AdamW(0.25), "a": Adafactor(schedule)}


def test_rows_hold_what_is_really_kept():
    optimizer = ComponentOptimizer(components())
    trained = variables()
    optimizer.build(trained)
    b, a, total = optimizer_table(optimizer, trained)
    count = counter_bytes(optimizer)
    # Two moments in float32; the count and the rate.
    assert b == ("b", 8, 0.25, 2 * 8 * 4 + count + 4)
    # 3 rows and 5 columns, 7 squares; the rate is the schedule's peak, not that of step 0.
    assert a == ("a", 22, 0.5, (3 + 5 + 7) * 4 + count)
    assert (total.pattern, total.parameters, total.learning_rate) == ("all", 30, None)
    # Beside those of the parts: the count, two of skipped steps, three norms, and a rate that
    # MultiOptimizer has and never uses.
    own = count + 2 * 4 + 3 * 4 + 4
    assert total.state_bytes == a.state_bytes + b.state_bytes + own


@pytest.mark.parametrize("scaled", [False, True])
def test_sums_and_averages_belong_to_their_components(scaled):
    bare = ComponentOptimizer(components())
    full = ComponentOptimizer(components(), accumulation_steps=2, ema_decay=0.9)
    trained = variables()
    bare.build(trained)
    outer = LossScaleOptimizer(full) if scaled else full
    outer.build(trained)
    before, after = optimizer_table(bare, trained), optimizer_table(outer, trained)
    for old, new in zip(before[:2], after[:2], strict=True):
        assert new[:3] == old[:3]
        assert new.state_bytes - old.state_bytes == 2 * 4 * old.parameters
    assert after[2].parameters == 30
    assert after[2].state_bytes > sum(row.state_bytes for row in after[:2])


def test_other_optimizers_have_one_row():
    trained = model_with("a", "b").trainable_variables
    optimizer = keras.optimizers.SGD(0.5, momentum=0.5)
    optimizer.build(trained)
    kept = 8 * 4 + counter_bytes(optimizer) + 4
    assert optimizer_table(optimizer, trained) == [("all", 8, 0.5, kept)]


def test_moments_in_bfloat16_count_two_bytes_each():
    trained = variables()[1:2]
    optimizer = keras.optimizers.SGD(0.5, momentum=0.5)
    optimizer.build(trained)
    (row,) = optimizer_table(optimizer, trained)
    assert row.state_bytes == 8 * 2 + counter_bytes(optimizer) + 4


def test_optimizer_must_be_built():
    with pytest.raises(ValueError, match="Build the optimizer first"):
        optimizer_table(ComponentOptimizer(components()), variables())
