"""The tables of vision encoders: SigLIP, CLIP and InternViT."""

from dl_techniques.checkpoints.key_map import Drop, KeyMap, Rule

_ATTENTION = "block_{i}/attention"
_MLP = "block_{i}/mlp"

# What SigLIP and CLIP have alike.
_ENCODER_RULES = (
    Rule(
        "patch_embedding/patch_projection/kernel",
        "embeddings.patch_embedding.weight",
        "patch kernel",
    ),
    Rule("patch_embedding/position_embedding", "embeddings.position_embedding.weight"),
    Rule("block_{i}/norm1/gamma", "encoder.layers.{i}.layer_norm1.weight"),
    Rule("block_{i}/norm1/beta", "encoder.layers.{i}.layer_norm1.bias"),
    Rule("block_{i}/norm2/gamma", "encoder.layers.{i}.layer_norm2.weight"),
    Rule("block_{i}/norm2/beta", "encoder.layers.{i}.layer_norm2.bias"),
    Rule(f"{_ATTENTION}/q_proj/kernel", "encoder.layers.{i}.self_attn.q_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/q_proj/bias", "encoder.layers.{i}.self_attn.q_proj.bias"),
    Rule(f"{_ATTENTION}/k_proj/kernel", "encoder.layers.{i}.self_attn.k_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/k_proj/bias", "encoder.layers.{i}.self_attn.k_proj.bias"),
    Rule(f"{_ATTENTION}/v_proj/kernel", "encoder.layers.{i}.self_attn.v_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/v_proj/bias", "encoder.layers.{i}.self_attn.v_proj.bias"),
    Rule(
        f"{_ATTENTION}/o_proj/kernel", "encoder.layers.{i}.self_attn.out_proj.weight", "transpose"
    ),
    Rule(f"{_ATTENTION}/o_proj/bias", "encoder.layers.{i}.self_attn.out_proj.bias"),
    Rule(f"{_MLP}/fc1/kernel", "encoder.layers.{i}.mlp.fc1.weight", "transpose"),
    Rule(f"{_MLP}/fc1/bias", "encoder.layers.{i}.mlp.fc1.bias"),
    Rule(f"{_MLP}/fc2/kernel", "encoder.layers.{i}.mlp.fc2.weight", "transpose"),
    Rule(f"{_MLP}/fc2/bias", "encoder.layers.{i}.mlp.fc2.bias"),
)

SIGLIP_RULES = (
    *_ENCODER_RULES,
    Rule("patch_embedding/patch_projection/bias", "embeddings.patch_embedding.bias"),
    Rule("norm/gamma", "post_layernorm.weight"),
    Rule("norm/beta", "post_layernorm.bias"),
)

CLIP_RULES = (
    *_ENCODER_RULES,
    Rule("patch_embedding/class_embedding", "embeddings.class_embedding"),
    # Misspelt in the format.
    Rule("pre_norm/gamma", "pre_layrnorm.weight"),
    Rule("pre_norm/beta", "pre_layrnorm.bias"),
)

# The 6B models have RMSNorm, query-key norms and no biases of q, k and v; the 300M models have
# LayerNorm, these biases and no query-key norms.
INTERNVIT_RULES = (
    Rule(
        "patch_embedding/patch_projection/kernel",
        "embeddings.patch_embedding.weight",
        "patch kernel",
    ),
    Rule("patch_embedding/patch_projection/bias", "embeddings.patch_embedding.bias"),
    Rule("patch_embedding/class_embedding", "embeddings.class_embedding", "without leading 1, 1"),
    Rule(
        "patch_embedding/position_embedding", "embeddings.position_embedding", "without leading 1"
    ),
    Rule("block_{i}/norm1/gamma|scale", "encoder.layers.{i}.norm1.weight"),
    Rule("block_{i}/norm1/beta", "encoder.layers.{i}.norm1.bias"),
    Rule("block_{i}/norm2/gamma|scale", "encoder.layers.{i}.norm2.weight"),
    Rule("block_{i}/norm2/beta", "encoder.layers.{i}.norm2.bias"),
    Rule(
        f"{_ATTENTION}/q_proj/kernel {_ATTENTION}/k_proj/kernel {_ATTENTION}/v_proj/kernel",
        "encoder.layers.{i}.attn.qkv.weight",
        "split, transpose, padded",
    ),
    Rule(
        f"{_ATTENTION}/q_proj/bias {_ATTENTION}/k_proj/bias {_ATTENTION}/v_proj/bias",
        "encoder.layers.{i}.attn.qkv.bias",
        "split, padded",
    ),
    Rule(f"{_ATTENTION}/q_norm/scale", "encoder.layers.{i}.attn.q_norm.weight", "same, padded"),
    Rule(f"{_ATTENTION}/k_norm/scale", "encoder.layers.{i}.attn.k_norm.weight", "same, padded"),
    Rule(f"{_ATTENTION}/o_proj/kernel", "encoder.layers.{i}.attn.proj.weight", "transpose, padded"),
    Rule(f"{_ATTENTION}/o_proj/bias", "encoder.layers.{i}.attn.proj.bias"),
    Rule("block_{i}/ls1/scale", "encoder.layers.{i}.ls1"),
    Rule("block_{i}/ls2/scale", "encoder.layers.{i}.ls2"),
    Rule(f"{_MLP}/fc1/kernel", "encoder.layers.{i}.mlp.fc1.weight", "transpose"),
    Rule(f"{_MLP}/fc1/bias", "encoder.layers.{i}.mlp.fc1.bias"),
    Rule(f"{_MLP}/fc2/kernel", "encoder.layers.{i}.mlp.fc2.weight", "transpose"),
    Rule(f"{_MLP}/fc2/bias", "encoder.layers.{i}.mlp.fc2.bias"),
)

# transformers' names for InternViT; q, k and v have tensors of their own there.
INTERNVL_VISION_RULES = (
    Rule(
        "patch_embedding/patch_projection/kernel",
        "embeddings.patch_embeddings.projection.weight",
        "patch kernel",
    ),
    Rule("patch_embedding/patch_projection/bias", "embeddings.patch_embeddings.projection.bias"),
    Rule("patch_embedding/class_embedding", "embeddings.cls_token", "without leading 1, 1"),
    Rule(
        "patch_embedding/position_embedding", "embeddings.position_embeddings", "without leading 1"
    ),
    Rule("block_{i}/norm1/gamma|scale", "encoder.layer.{i}.layernorm_before.weight"),
    Rule("block_{i}/norm1/beta", "encoder.layer.{i}.layernorm_before.bias"),
    Rule("block_{i}/norm2/gamma|scale", "encoder.layer.{i}.layernorm_after.weight"),
    Rule("block_{i}/norm2/beta", "encoder.layer.{i}.layernorm_after.bias"),
    *(
        rule
        for name in "qkv"
        for rule in (
            Rule(
                f"{_ATTENTION}/{name}_proj/kernel",
                f"encoder.layer.{{i}}.attention.{name}_proj.weight",
                "transpose",
            ),
            Rule(
                f"{_ATTENTION}/{name}_proj/bias", f"encoder.layer.{{i}}.attention.{name}_proj.bias"
            ),
        )
    ),
    Rule(f"{_ATTENTION}/q_norm/scale", "encoder.layer.{i}.attention.q_norm.weight"),
    Rule(f"{_ATTENTION}/k_norm/scale", "encoder.layer.{i}.attention.k_norm.weight"),
    Rule(
        f"{_ATTENTION}/o_proj/kernel",
        "encoder.layer.{i}.attention.projection_layer.weight",
        "transpose",
    ),
    Rule(f"{_ATTENTION}/o_proj/bias", "encoder.layer.{i}.attention.projection_layer.bias"),
    Rule("block_{i}/ls1/scale", "encoder.layer.{i}.lambda_1"),
    Rule("block_{i}/ls2/scale", "encoder.layer.{i}.lambda_2"),
    Rule(f"{_MLP}/fc1/kernel", "encoder.layer.{i}.mlp.fc1.weight", "transpose"),
    Rule(f"{_MLP}/fc1/bias", "encoder.layer.{i}.mlp.fc1.bias"),
    Rule(f"{_MLP}/fc2/kernel", "encoder.layer.{i}.mlp.fc2.weight", "transpose"),
    Rule(f"{_MLP}/fc2/bias", "encoder.layer.{i}.mlp.fc2.bias"),
)

POSITION_IDS = Drop(
    r".*\bposition_ids", "the numbers 0, 1, ...: a buffer of older transformers versions"
)


def unread_layers(prefix: str, first: int, end: int) -> tuple[Drop, ...]:
    """Return the encoder layers [first, end) as keys to drop.

    Args:
        prefix: Regular expression of what stands before `encoder.layers`.
        first: The first layer that is not read: a VLM may read the output of an earlier one.
        end: The number of layers that the checkpoint has.
    """
    reason = f"lies behind layer {first - 1}, whose output is read"
    return tuple(
        Drop(rf"{prefix}encoder\.layers\.{layer}\..*", reason) for layer in range(first, end)
    )


_TEXT_TOWER = Drop(r"text_model\..*", "the text tower of the contrastive model")

SIGLIP = KeyMap(
    "siglip",
    SIGLIP_RULES,
    drops=(
        POSITION_IDS,
        _TEXT_TOWER,
        Drop(r"(vision_model\.)?head\..*", "the pooling head: a VLM reads all tokens"),
        Drop(r"logit_scale|logit_bias", "of the contrastive loss"),
    ),
    # transformers 5 writes without the prefix; it reads both, as do older versions only with it.
    prefixes=("vision_model.", ""),
)

CLIP = KeyMap(
    "clip",
    CLIP_RULES,
    drops=(
        POSITION_IDS,
        _TEXT_TOWER,
        Drop(
            r"(vision_model\.)?post_layernorm\.(weight|bias)",
            "acts on the pooled class token only: a VLM reads the tokens before it",
        ),
        Drop(r"(visual|text)_projection\.weight", "into the space of the contrastive loss"),
        Drop(r"logit_scale", "of the contrastive loss"),
    ),
    prefixes=SIGLIP.prefixes,
)

INTERNVIT = KeyMap(
    "internvit",
    INTERNVIT_RULES,
    drops=(
        Drop(r"language_model\..*", "the language model of a whole InternVL or NVLM-D"),
        Drop(r"mlp1\..*", "the projection of a whole InternVL or NVLM-D"),
    ),
    # Without it in the encoder's own files, with it in those of whole models.
    prefixes=("", "vision_model."),
)
