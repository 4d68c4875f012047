"""VisionTransformer: a pre-norm ViT that returns all tokens."""

from dl_techniques.layers.block_runner import BlockRunner
from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.patch_embedding import PatchEmbedding
from dl_techniques.layers.transformer_blocks import EncoderBlock, make_norm


@register
class VisionTransformer(ConfiguredLayer):
    """Patch embedding (-> norm) -> `depth` encoder blocks (-> norm).

    The defaults are a plain ViT; CLIP and InternViT differ by these arguments alone.

    Args:
        img_size, patch_size, embed_dim, class_token: See `PatchEmbedding`.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Width inside the MLPs, in multiples of `embed_dim`.
        dropout: On attention weights and after both layers of the MLPs.
        activation: See `MLP`.
        norm_epsilon: Epsilon of every norm.
        norm_type, use_qkv_bias, qk_norm, layer_scale: See `EncoderBlock`.
        use_patch_bias: A bias on the projection of the patches.
        use_pre_norm: A norm before the first block (`pre_norm`).
        use_final_norm: A norm after the last block (`norm`).
        positions: See `PatchEmbedding`.
        drop_class_token: Whether the class token, which comes first, is left out of the output.
        remat: Whether training keeps only the blocks' inputs and computes their insides again for
            the gradients: less memory, a third more work.

    Input: float[B, H, W, 3], already normalised. Output: float[B, N, embed_dim].

    Raises:
        ValueError: if a class token is to be dropped where there is none.

    Reference: https://arxiv.org/abs/2010.11929; CLIP, https://arxiv.org/abs/2103.00020;
    InternViT, https://arxiv.org/abs/2312.14238.
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
        norm_type: str = "layer",
        use_qkv_bias: bool = True,
        qk_norm: bool | str = False,
        layer_scale: float | None = None,
        use_patch_bias: bool = True,
        use_pre_norm: bool = False,
        use_final_norm: bool = True,
        drop_class_token: bool = False,
        remat: bool = False,
        positions: str = "learned",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if drop_class_token and not class_token:
            raise ValueError("drop_class_token=True needs class_token=True: there is none to drop.")
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.class_token = class_token
        self.activation = activation
        self.norm_epsilon = norm_epsilon
        self.norm_type = norm_type
        self.use_qkv_bias = use_qkv_bias
        self.qk_norm = qk_norm
        self.layer_scale = layer_scale
        self.use_patch_bias = use_patch_bias
        self.use_pre_norm = use_pre_norm
        self.use_final_norm = use_final_norm
        self.drop_class_token = drop_class_token
        self.remat = remat
        self.positions = positions
        self.patch_embedding = PatchEmbedding(
            img_size,
            patch_size,
            embed_dim,
            class_token,
            use_patch_bias,
            positions,
            name="patch_embedding",
            dtype=self.dtype_policy,
        )
        self.img_size = self.patch_embedding.img_size
        self.blocks = [
            EncoderBlock(
                embed_dim,
                num_heads,
                # Rounded, not cut: so400m's ratio is 4304 / 1152.
                round(embed_dim * mlp_ratio),
                activation,
                dropout,
                norm_epsilon,
                norm_type,
                use_qkv_bias,
                qk_norm,
                layer_scale,
                name=f"block_{i}",
                dtype=self.dtype_policy,
            )
            for i in range(depth)
        ]
        self.pre_norm = self.norm = None
        if use_pre_norm:
            self.pre_norm = make_norm(norm_type, norm_epsilon, "pre_norm", self.dtype_policy)
        if use_final_norm:
            self.norm = make_norm(norm_type, norm_epsilon, "norm", self.dtype_policy)

    def build(self, images_shape):
        self.patch_embedding.build(images_shape)
        for part in (self.pre_norm, *self.blocks, self.norm):
            if part is not None:
                part.build((None, None, self.embed_dim))

    def call(self, images, training=None):
        x = self.patch_embedding(images)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        run = BlockRunner(self.remat, training)
        for block in self.blocks:
            x = run(block, x)
        if self.norm is not None:
            x = self.norm(x)
        return x[:, 1:] if self.drop_class_token else x

    def compute_output_shape(self, images_shape):
        batch, length, width = self.patch_embedding.compute_output_shape(images_shape)
        if self.drop_class_token and length is not None:
            length -= 1
        return batch, length, width
