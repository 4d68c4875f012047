"""The two feed-forward networks of transformers."""

import keras
from keras import ops

from dl_techniques.layers.configured_layer import ConfiguredLayer, register, require_width
from dl_techniques.layers.dense import Dense
from dl_techniques.utils.jax_queries import is_traced_by_jax

ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
}


@register
class MLP(ConfiguredLayer):
    """Dense -> activation -> dropout -> Dense -> dropout, as wide at the end as at the start.

    Args:
        hidden_dim: Width of input and output.
        mlp_dim: Width between.
        activation: "gelu" (exact), "gelu_tanh" or "quick_gelu".
        dropout: Share of units dropped after each Dense layer in training.

    Input and output: float[..., hidden_dim].
    """

    def __init__(
        self,
        hidden_dim: int,
        mlp_dim: int,
        activation: str = "gelu_tanh",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {sorted(ACTIVATIONS)}.")
        self.hidden_dim = hidden_dim
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.dropout = dropout
        self.fc1 = Dense(mlp_dim, name="fc1", dtype=self.dtype_policy)
        self.fc2 = Dense(hidden_dim, name="fc2", dtype=self.dtype_policy)
        self.dropout1 = keras.layers.Dropout(dropout, name="dropout1", dtype=self.dtype_policy)
        self.dropout2 = keras.layers.Dropout(dropout, name="dropout2", dtype=self.dtype_policy)

    def build(self, x_shape):
        require_width(self, x_shape)
        self.fc1.build(x_shape)
        self.fc2.build((*x_shape[:-1], self.mlp_dim))

    def call(self, x, training=None):
        x = _activated(self.fc1(x), ACTIVATIONS[self.activation])
        if self.dropout:
            x = self.dropout1(x, training=training)
        x = self.fc2(x)
        return self.dropout2(x, training=training) if self.dropout else x

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.hidden_dim)


def _activated(x, activation):
    """Return `activation(x)`; of its inside, JAX would keep an array as large for the gradient."""
    return keras.remat(activation)(x) if is_traced_by_jax(x) else activation(x)


@register
class SwiGLU(ConfiguredLayer):
    """down_proj(silu(gate_proj(x)) * up_proj(x)), without biases.

    Args:
        hidden_dim: Width of input and output.
        mlp_dim: Width between.
        dropout: Share of units dropped before and after `down_proj` in training.

    Input and output: float[..., hidden_dim].

    Reference: GLU variants improve transformer, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, hidden_dim: int, mlp_dim: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.mlp_dim = mlp_dim
        self.dropout = dropout

        def dense(units, name):
            return Dense(units, use_bias=False, name=name, dtype=self.dtype_policy)

        self.gate_proj = dense(mlp_dim, "gate_proj")
        self.up_proj = dense(mlp_dim, "up_proj")
        self.down_proj = dense(hidden_dim, "down_proj")
        self.dropout1 = keras.layers.Dropout(dropout, name="dropout1", dtype=self.dtype_policy)
        self.dropout2 = keras.layers.Dropout(dropout, name="dropout2", dtype=self.dtype_policy)

    def build(self, x_shape):
        require_width(self, x_shape)
        self.gate_proj.build(x_shape)
        self.up_proj.build(x_shape)
        self.down_proj.build((*x_shape[:-1], self.mlp_dim))

    def call(self, x, training=None):
        x = ops.silu(self.gate_proj(x)) * self.up_proj(x)
        if self.dropout:
            x = self.dropout1(x, training=training)
        x = self.down_proj(x)
        return self.dropout2(x, training=training) if self.dropout else x

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.hidden_dim)
