"""New keys and values reach their slots and touch no others."""

import numpy as np
import pytest
from keras import ops
from tiny_models import run

from dl_techniques.layers.cache_slots import write_slots


@pytest.mark.parametrize("index", [2, [2, 0, 3]], ids=["common", "per row"])
def test_new_values_take_their_slots(index):
    cache, new = np.zeros((3, 5, 2), "float32"), np.arange(1, 13).reshape(3, 2, 2)
    arrays = (cache, new.astype("float32"), np.asarray(index, "int32"))
    got = run(lambda *args: write_slots(*map(ops.convert_to_tensor, args)), *arrays)
    expected = np.zeros((3, 5, 2))
    for row, start in enumerate(np.broadcast_to(index, 3)):
        expected[row, start : start + 2] = new[row]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.no_backend
@pytest.mark.parametrize("index", [4, np.int32(4), np.array([0, 4, 1], "int32")])
def test_new_values_without_slots(index):
    with pytest.raises(ValueError, match="of 5 slots has no room for 2 tokens from slot 4 on"):
        write_slots(ops.zeros((3, 5, 2)), ops.ones((3, 2, 2)), index)
