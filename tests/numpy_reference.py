"""The layers once more, slow and plain, in float64 NumPy: what the tests compare with."""

import math

import numpy as np


def weights(layer) -> dict:
    """Return {path below the layer: float64 value}."""
    return {v.path.split("/", 1)[1]: np.float64(v.numpy()) for v in layer.weights}


def part(values: dict, name: str) -> dict:
    """Return the weights below `name`."""
    return {k[len(name) + 1 :]: v for k, v in values.items() if k.startswith(name + "/")}


def dense(x, w):
    return x @ w["kernel"] + w.get("bias", 0.0)


def layer_norm(x, w, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * w["gamma"] + w["beta"]
    )


def rms_norm(x, w, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w["scale"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(vector, position, theta):
    """Rotate channel pairs (i, i + d/2) of one head's vector, pair by pair."""
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(x, w, num_heads, num_kv_heads, mask=None, theta=None, qk_norm=False, epsilon=1e-6):
    """Grouped-query attention, one row, one head and one query at a time; mask bool[B, T, T]."""
    batch, length, _ = x.shape
    query, key, value = (dense(x, part(w, f"{n}_proj")) for n in "qkv")
    size = query.shape[-1] // num_heads
    joined = np.zeros((batch, length, num_heads * size))
    for b in range(batch):
        for head in range(num_heads):
            shared = head // (num_heads // num_kv_heads)
            q = query[b, :, head * size : (head + 1) * size]
            k, v = (t[b, :, shared * size : (shared + 1) * size] for t in (key, value))
            if qk_norm:
                q = rms_norm(q, part(w, "q_norm"), epsilon)
                k = rms_norm(k, part(w, "k_norm"), epsilon)
            if theta is not None:
                q, k = ([rotate(row, t, theta) for t, row in enumerate(m)] for m in (q, k))
            for t in range(length):
                seen = np.ones(length, bool) if mask is None else mask[b, t]
                if not seen.any():
                    continue
                scores = np.array([q[t] @ k[s] for s in range(length)]) / math.sqrt(size)
                share = np.where(seen, np.exp(scores - scores.max()), 0.0)
                joined[b, t, head * size : (head + 1) * size] = share / share.sum() @ v
    return dense(joined, part(w, "o_proj"))


def mlp(x, w, activation=gelu_tanh):
    return dense(activation(dense(x, part(w, "fc1"))), part(w, "fc2"))


def swiglu(x, w):
    gate = silu(dense(x, part(w, "gate_proj")))
    return dense(gate * dense(x, part(w, "up_proj")), part(w, "down_proj"))


def encoder_block(x, w, num_heads, epsilon):
    normed = layer_norm(x, part(w, "norm1"), epsilon)
    x = x + attention(normed, part(w, "attention"), num_heads, num_heads)
    return x + mlp(layer_norm(x, part(w, "norm2"), epsilon), part(w, "mlp"))


def decoder_block(x, w, num_heads, num_kv_heads, mask, theta, epsilon):
    normed = rms_norm(x, part(w, "input_norm"), epsilon)
    x = x + attention(normed, part(w, "attention"), num_heads, num_kv_heads, mask, theta)
    return x + swiglu(rms_norm(x, part(w, "post_attention_norm"), epsilon), part(w, "mlp"))


def space_to_depth(grid, s):
    """Return float[rows / s * columns / s, s * s * C] of float[rows, columns, C], (dy, dx, c)."""
    rows, columns, _ = grid.shape
    return np.stack(
        [
            np.concatenate([grid[y + dy, x + dx] for dy in range(s) for dx in range(s)])
            for y in range(0, rows, s)
            for x in range(0, columns, s)
        ]
    )
