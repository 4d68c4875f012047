import numpy as np
import numpy_reference as reference
import pytest
from only_on import only_on
from tiny_models import fill, numpy, run

from dl_techniques.layers import MLP, SwiGLU

X = 2 * np.random.default_rng(0).standard_normal((2, 3, 8)).astype("float32")


def _built(layer):
    layer.build((None, None, 8))
    return fill(layer)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_mlp(activation):
    layer = _built(MLP(8, 12, activation))
    expected = reference.mlp(
        np.float64(X), reference.weights(layer), getattr(reference, activation)
    )
    np.testing.assert_allclose(run(layer, X), expected, rtol=1e-5, atol=1e-5)


def test_swiglu():
    layer = _built(SwiGLU(8, 12))
    assert set(reference.weights(layer)) == {f"{n}_proj/kernel" for n in ("gate", "up", "down")}
    expected = reference.swiglu(np.float64(X), reference.weights(layer))
    np.testing.assert_allclose(run(layer, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_dropout_acts_after_both_parts_and_only_in_training(kind):
    plain, layer = _built(kind(8, 12)), _built(kind(8, 12, dropout=0.5))
    np.testing.assert_array_equal(run(layer, X), run(plain, X))
    x = np.repeat(X[:1], 2000, axis=0)
    dropped, expected = numpy(layer(x, training=True)), run(plain, X[:1])
    # The last dropout zeroes half of the outputs and doubles the others.
    assert 0.45 < (dropped == 0).mean() < 0.55
    # The first one makes those that stay differ from row to row.
    stays = dropped[:, 0, 0][dropped[:, 0, 0] != 0]
    assert stays.std() > 0.01
    error = np.abs(dropped.mean(0) - expected[0])
    assert (error <= 5 * dropped.std(0) / np.sqrt(2000) + 1e-5).all()


@only_on("jax")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_only_what_the_products_need_is_kept_for_the_gradient(activation):
    import jax

    layer = _built(MLP(8, 12, activation))
    values = [v.value for v in layer.trainable_variables]

    def out(values, x):
        return layer.stateless_call(values, [], x)[0].sum()

    kept = jax.eval_shape(lambda *args: jax.vjp(out, *args)[1], values, X)
    wide = [x for x in jax.tree.leaves(kept) if x.size == 2 * 3 * 12]
    assert len(wide) == 2  # What goes into the activation and what comes out.


@pytest.mark.no_backend
@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_wrong_width(kind):
    with pytest.raises(ValueError, match=r"width hidden_dim=8, got shape \(2, 12\)"):
        kind(8, 16)(np.zeros((2, 12), "float32"))


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation='relu' must be one of"):
        MLP(8, 12, "relu")
