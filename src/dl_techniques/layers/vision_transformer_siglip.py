"""SigLIPVisionTransformer: the ViT of SigLIP and SigLIP2 at fixed resolution."""

from dl_techniques.layers.configured_layer import register
from dl_techniques.layers.vision_transformer import VisionTransformer

# What makes a `VisionTransformer` SigLIP's. Handed over by name, so that none can be given twice.
SETTINGS = {
    "activation": "gelu_tanh",
    "norm_epsilon": 1e-6,
    "norm_type": "layer",
    "use_qkv_bias": True,
    "qk_norm": False,
    "layer_scale": None,
    "use_patch_bias": True,
    "use_pre_norm": False,
    "use_final_norm": True,
    "drop_class_token": False,
    "positions": "learned",
}


@register
class SigLIPVisionTransformer(VisionTransformer):
    """`VisionTransformer` as SigLIP has it: tanh GELU, epsilon 1e-6, no class token by default.

    The defaults are SigLIP-B/16 at 224 pixels (85,797,120 parameters, without its pooling head).

    Args:
        img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, dropout, class_token, remat:
            See `VisionTransformer`.

    Input: float[B, H, W, 3]. Output: float[B, N, embed_dim].

    Reference: https://arxiv.org/abs/2303.15343, https://arxiv.org/abs/2502.14786.
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
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(
            img_size,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            dropout,
            class_token,
            remat=remat,
            **SETTINGS,
            **kwargs,
        )

    def arguments(self) -> dict:
        """Return every constructor argument with its present value."""
        return {name: value for name, value in super().arguments().items() if name not in SETTINGS}
