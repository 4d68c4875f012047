"""VisionTransformer: a pre-norm ViT that returns all tokens."""

import keras

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.patch_embedding import PatchEmbedding
from dl_techniques.layers.transformer_blocks import EncoderBlock


@register
class VisionTransformer(ConfiguredLayer):
    """Patch embedding -> `depth` encoder blocks -> LayerNorm.

    Args:
        img_size, patch_size, embed_dim, class_token: See `PatchEmbedding`.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs, in multiples of `embed_dim`.
        dropout: On attention weights and after both layers of the MLPs.
        activation: See `MLP`.
        norm_epsilon: Epsilon of every LayerNorm.

    Input: float[B, H, W, 3], already normalised. Output: float[B, N, embed_dim].

    Reference: https://arxiv.org/abs/2010.11929.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        class_token: bool = False,
        activation: str = "gelu_tanh",
        norm_epsilon: float = 1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.img_size = img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.class_token = class_token
        self.activation = activation
        self.norm_epsilon = norm_epsilon
        self.patch_embedding = PatchEmbedding(
            img_size,
            patch_size,
            embed_dim,
            class_token,
            name="patch_embedding",
            dtype=self.dtype_policy,
        )
        self.blocks = [
            EncoderBlock(
                embed_dim,
                num_heads,
                # Rounded, not cut: so400m's ratio is 4304 / 1152.
                round(embed_dim * mlp_ratio),
                activation,
                dropout,
                norm_epsilon,
                name=f"block_{i}",
                dtype=self.dtype_policy,
            )
            for i in range(depth)
        ]
        self.norm = keras.layers.LayerNormalization(
            epsilon=norm_epsilon, name="norm", dtype=self.dtype_policy
        )

    def build(self, images_shape):
        self.patch_embedding.build(images_shape)
        for part in (*self.blocks, self.norm):
            part.build((None, None, self.embed_dim))

    def call(self, images, training=None):
        x = self.patch_embedding(images)
        for block in self.blocks:
            x = block(x, training=training)
        return self.norm(x)

    def compute_output_shape(self, images_shape):
        return self.patch_embedding.compute_output_shape(images_shape)
