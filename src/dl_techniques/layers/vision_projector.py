"""VisionProjector: an MLP from the width of vision tokens to that of a decoder."""

import keras

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.dense import Dense
from dl_techniques.layers.feed_forward import ACTIVATIONS


@register
class VisionProjector(ConfiguredLayer):
    """(LayerNorm ->) Dense -> GELU -> ... -> Dense (-> LayerNorm), exact GELU between the layers.

    LLaVA-1.5 has two layers and no norm; NVLM-D a norm before, and two layers without biases.

    Args:
        output_dim: Width of the output.
        hidden_dim: Width between the layers; unused with one layer.
        num_layers: Number of Dense layers.
        dropout: Share of units dropped after each GELU in training.
        use_layer_norm: Whether a LayerNorm closes.
        use_input_norm: Whether a LayerNorm opens.
        use_bias: Whether the Dense layers have biases.
        norm_epsilon: Epsilon of the norms.

    Input: float[..., N, D]. Output: float[..., N, output_dim].

    Raises:
        ValueError: if there is no layer.

    Reference: LLaVA-1.5, https://arxiv.org/abs/2310.03744; NVLM, https://arxiv.org/abs/2409.11402.
    """

    def __init__(
        self,
        output_dim: int,
        hidden_dim: int = 2048,
        num_layers: int = 2,
        dropout: float = 0.0,
        use_layer_norm: bool = True,
        use_input_norm: bool = False,
        use_bias: bool = True,
        norm_epsilon: float = 1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1.")
        self.output_dim = output_dim
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.dropout = dropout
        self.use_layer_norm = use_layer_norm
        self.use_input_norm = use_input_norm
        self.use_bias = use_bias
        self.norm_epsilon = norm_epsilon
        widths = [hidden_dim] * (num_layers - 1) + [output_dim]
        self.dense_layers = [
            Dense(width, use_bias=use_bias, name=f"fc{i}", dtype=self.dtype_policy)
            for i, width in enumerate(widths, start=1)
        ]
        self.dropout_layers = [
            keras.layers.Dropout(dropout, name=f"dropout{i}", dtype=self.dtype_policy)
            for i in range(1, num_layers)
        ]
        self.input_norm = self.norm = None
        if use_input_norm:
            self.input_norm = self._make_norm("input_norm")
        if use_layer_norm:
            self.norm = self._make_norm("norm")

    def _make_norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.norm_epsilon, name=name, dtype=self.dtype_policy
        )

    def build(self, x_shape):
        if self.input_norm is not None:
            self.input_norm.build(x_shape)
        for layer in self.dense_layers:
            layer.build(x_shape)
            x_shape = (*x_shape[:-1], layer.units)
        if self.norm is not None:
            self.norm.build(x_shape)

    def call(self, x, training=None):
        x = x if self.input_norm is None else self.input_norm(x)
        for layer, dropout in zip(self.dense_layers, self.dropout_layers, strict=False):
            x = dropout(ACTIVATIONS["gelu"](layer(x)), training=training)
        x = self.dense_layers[-1](x)
        return x if self.norm is None else self.norm(x)

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.output_dim)
