"""Single steps on JAX, and batches that lie on the device before their step."""

import keras
import numpy as np
import pytest
from only_on import only_on
from tiny_models import fill
from toy_runs import ToyData, adam, micro_nanovlm, weights

from dl_techniques.losses import NanoVLMLoss, NextTokenAccuracy
from dl_techniques.models import jax_steps
from dl_techniques.training.batches_ahead import BatchesAhead


def _compiled():
    model = fill(micro_nanovlm())
    metrics = [NextTokenAccuracy(name="accuracy")]
    model.compile(adam(), NanoVLMLoss(), metrics=metrics)
    return model


def _steps(model, count=4):
    data = ToyData(shuffle=False)
    return [model.train_on_batch(*data[i % len(data)], return_dict=True) for i in range(count)]


@only_on("jax")
def test_the_short_way_is_that_of_keras(monkeypatch):
    short = _compiled()
    of_short = _steps(short)
    monkeypatch.setattr(jax_steps, "_on_one_jax_device", lambda: False)
    plain = _compiled()
    assert of_short == _steps(plain)
    np.testing.assert_equal(weights(short), weights(plain))
    for ours, theirs in zip(short.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@only_on("jax")
def test_the_short_way_is_taken_and_forgets_what_an_earlier_compile_trained(monkeypatch):
    model = _compiled()
    _steps(model, 1)
    monkeypatch.setattr(keras.Model, "train_on_batch", lambda *args: pytest.fail("the long way"))
    _steps(model, 2)
    monkeypatch.undo()
    model.vision_encoder.trainable = False
    model.compile(keras.optimizers.Adam(0.01), NanoVLMLoss())
    frozen = [v.numpy() for v in model.vision_encoder.weights]
    before = weights(model)
    _steps(model, 3)
    for old, variable in zip(frozen, model.vision_encoder.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert any((before[name] != value).any() for name, value in weights(model).items())


def test_images_wait_on_the_device_and_the_host_still_checks_the_rest():
    data = ToyData(shuffle=False)

    class Iterator:
        def __next__(self):
            return data[0]

        def get_state(self):
            return {"at": 1}

    batches = BatchesAhead(Iterator())
    (inputs, labels), state, names = batches.next()
    batches.close()
    assert (state, names) == ({"at": 1}, [])
    expected, expected_labels = data[0]
    assert isinstance(inputs["text_tokens"], np.ndarray) and isinstance(labels, np.ndarray)
    np.testing.assert_array_equal(labels, expected_labels)
    moved = keras.backend.backend() != "tensorflow"
    assert isinstance(inputs["images"], np.ndarray) is not moved
    images = keras.ops.convert_to_numpy(inputs["images"])
    np.testing.assert_array_equal(images, expected["images"])
