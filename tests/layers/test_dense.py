import keras
import numpy as np
import pytest
from only_on import only_on
from tiny_models import numpy, run

from dl_techniques.layers.dense import Dense

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8)).astype("float32")


def _pair(**options):
    ours, plain = Dense(4, **options), keras.layers.Dense(4, **options)
    for layer in (ours, plain):
        layer.build((None, None, 8))
    ours.set_weights([RNG.standard_normal(w.shape) for w in ours.get_weights()])
    plain.set_weights(ours.get_weights())
    return ours, plain


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_is_keras_dense(shape):
    ours, plain = _pair(activation="tanh")
    x = RNG.standard_normal(shape).astype("float32")
    np.testing.assert_allclose(run(ours, x), run(plain, x), rtol=1e-6, atol=1e-6)


def test_unknown_axes_and_adapters_and_saving(tmp_path):
    ours, plain = _pair()
    for layer in (ours, plain):
        layer.enable_lora(2)
    kernels = [RNG.standard_normal(shape).astype("float32") for shape in ((8, 2), (2, 4))]
    for layer in (ours, plain):
        layer.lora_kernel_a.assign(kernels[0])
        layer.lora_kernel_b.assign(kernels[1])
    expected = run(plain, X)
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, ours(inputs))
    assert model.output_shape == (None, None, 4)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "dense.keras")
    again = keras.models.load_model(tmp_path / "dense.keras")
    assert type(again.layers[-1]) is Dense
    np.testing.assert_array_equal(numpy(again(X)), numpy(model(X)))


def test_is_quantized_as_keras_dense():
    ours, plain = _pair()
    for layer in (ours, plain):
        layer.quantize("int8")
    np.testing.assert_array_equal(run(ours, X), run(plain, X))


@only_on("jax")
def test_the_kernels_gradient_is_a_product_of_two_matrices():
    import jax

    def products(layer):
        def loss(values, x):
            return (layer.stateless_call(values, [], x)[0] ** 2).sum()

        values = [v.value for v in layer.trainable_variables]
        text = str(jax.make_jaxpr(jax.grad(loss))(values, X))
        return "dimension_numbers=(([0], [0]), ([], []))" in text, "[0, 1]" in text

    assert [products(layer) for layer in _pair()] == [(True, False), (False, True)]
