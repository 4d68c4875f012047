"""A traced function is the function (PyTorch alone; every backend's environment has it here)."""

import numpy as np
import torch

from dl_techniques.generation.torch_tracing import trace


def _weights():
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(6, 5, generator=generator)), torch.randn(
        3, 6, generator=generator
    )


def test_structures_go_in_and_out():
    weight, x = _weights()

    def function(state, place):
        return {"y": [state["x"] @ weight, place + 1]}

    with torch.no_grad():
        traced = trace(function, {"x": x}, torch.tensor(1))
        got = traced({"x": 2 * x}, torch.tensor(5))
        np.testing.assert_allclose(got["y"][0], 2 * x @ weight, rtol=1e-6, atol=1e-6)
        assert int(got["y"][1]) == 6


def test_new_values_of_the_weights_are_seen():
    weight, x = _weights()
    with torch.no_grad():
        traced = trace(lambda x: x @ weight, x)
        weight.mul_(3)
        np.testing.assert_allclose(traced(x), x @ weight, rtol=1e-6, atol=1e-6)


def test_a_buffer_is_written_in_place_but_not_by_the_trace():
    buffer, slot = torch.zeros(2, 4), torch.tensor([1])

    def write(buffer, new, slot):
        return buffer.index_copy_(1, slot, new)

    traced = trace(write, buffer, torch.ones(2, 1), slot)
    assert not buffer.any()
    assert traced(buffer, torch.ones(2, 1), torch.tensor([2])) is buffer
    assert buffer.sum(0).tolist() == [0, 0, 2, 0]


def test_what_is_computed_twice_from_constants_is_computed_once():
    def angles():
        return torch.cos(torch.as_tensor(np.arange(4, dtype="float32")))

    seen = []

    def function(x):
        seen.append(1)
        return x * angles() + angles()

    x = torch.ones(4)
    with torch.no_grad():
        traced = trace(function, x)
        with torch.profiler.profile() as profile:
            got = traced(x)
    assert len(seen) == 1
    np.testing.assert_allclose(got, function(x))
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::cos") == 1
