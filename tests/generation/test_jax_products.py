"""Split products are the same products (JAX alone; every backend's environment has it here)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_techniques.generation.jax_products import MOST_ROWS, split_products


def _array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def _batched_products(function, *args):
    """How many products of the compiled program have a batch dimension."""
    return str(jax.make_jaxpr(function)(*args)).count("dimension_numbers=(([2], [1]), ([0], [0]))")


@pytest.mark.parametrize("rows", [1, MOST_ROWS])
def test_few_rows_are_split_and_give_the_same(rows):
    x, w = _array(rows, 1, 6), _array(6, 5, seed=1)
    split = split_products(lambda x, w: {"y": x @ w})
    np.testing.assert_allclose(split(x, w)["y"], x @ w, rtol=1e-6, atol=1e-6)
    assert _batched_products(split, x, w) == 1


def test_products_inside_functions_of_their_own_are_split_too():
    w = _array(6, 6)

    @jax.jit
    def inner(x):
        return jax.nn.silu(x @ w)

    def function(x):
        return jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, inner(inner(x)))

    x = _array(1, 6, seed=1)
    split = split_products(function)
    np.testing.assert_allclose(jax.jit(split)(x), function(x), rtol=1e-6, atol=1e-6)
    assert _batched_products(split, x) == 2


@pytest.mark.parametrize(
    ("x", "w", "function"),
    [
        (_array(MOST_ROWS + 1, 6), _array(6, 5), jnp.matmul),
        (_array(1, 7), _array(7, 5), jnp.matmul),
        (_array(1, 6), _array(5, 6), lambda x, w: x @ w.T),
        (_array(2, 1, 6), _array(2, 6, 5), lambda x, w: jnp.einsum("btk,bkn->btn", x, w)),
        (_array(1, 6).astype("bfloat16"), _array(6, 5).astype("bfloat16"), jnp.matmul),
    ],
    ids=["many rows", "odd", "transposed", "batched", "bfloat16"],
)
def test_other_products_stay(x, w, function):
    split = split_products(function)
    np.testing.assert_array_equal(split(x, w), function(x, w))
    assert str(jax.make_jaxpr(split)(x, w)).count("dot_general") == 1
    assert "reshape" not in str(jax.make_jaxpr(split)(x, w))
