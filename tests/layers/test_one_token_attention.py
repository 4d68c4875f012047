import numpy as np
import pytest
from keras import ops
from tiny_models import run

from dl_techniques.layers import GroupedQueryAttention, attention
from dl_techniques.layers.one_token_attention import MOST_HEADS, attend_one_token


def _arrays(num_heads, num_kv_heads, batch=3, seen=7, head_dim=4):
    rng = np.random.default_rng(0)
    shapes = [(batch, 1, num_heads, head_dim), *[(batch, seen, num_kv_heads, head_dim)] * 2]
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


@pytest.mark.parametrize("rows_heads", [None, (3, 1), (1, 1), (1, None)])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_equals_attention_by_hand(num_heads, num_kv_heads, rows_heads):
    query, key, value = _arrays(num_heads, num_kv_heads)
    groups = num_heads // num_kv_heads
    scores = np.einsum("btnh,bsnh->bnts", query, key.repeat(groups, axis=2)) / 2
    mask = None
    if rows_heads is not None:
        rows, heads = rows_heads
        mask = np.random.default_rng(1).uniform(size=(rows, heads or num_heads, 1, 7)) < 0.6
        assert mask.any(axis=-1).all()
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, value.repeat(groups, axis=2))
    got = run(attend_one_token, query, key, value, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_layer_takes_it_for_one_token_of_several_rows_and_few_heads(monkeypatch):
    seen = []

    def noted(query, *args):
        seen.append(query.shape)
        return attend_one_token(query, *args)

    monkeypatch.setattr(attention, "attend_one_token", noted)
    monkeypatch.setattr(attention, "jax_platform", lambda: "cpu")
    for batch, length, heads in ((2, 1, 2), (1, 1, 2), (2, 3, 2), (2, 1, MOST_HEADS + 1)):
        layer = GroupedQueryAttention(4 * heads, 2 * heads, heads, 4)
        layer.build((None, None, 4 * heads))
        cache = (ops.zeros((batch, 8, heads, 4)),) * 2
        mask = ops.ones((batch, 1, length, 8), dtype="bool")
        x = ops.ones((batch, length, 4 * heads))
        layer(x, attention_mask=mask, cache=cache, cache_index=0)
    assert seen == [(2, 1, 4, 4)]


def test_a_row_that_sees_nothing_gives_zeros():
    layer = GroupedQueryAttention(16, 4, 2)
    layer.build((None, None, 16))
    x = np.random.default_rng(0).standard_normal((2, 1, 16)).astype("float32")
    cache = np.ones((2, 8, 2, 4), "float32")
    mask = np.ones((2, 1, 1, 8), bool)
    mask[1] = False

    def call(x, cache, mask):
        return layer(x, attention_mask=mask, cache=(cache, cache), cache_index=3)[0]

    out = run(call, x, cache, mask)
    assert np.abs(out[0]).max() > 0.01 and not out[1].any()
