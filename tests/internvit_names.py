"""InternViT's weights under the names of its own files, and with dummy heads as NVLM-D has."""

import numpy as np

_INTERNVIT_NAMES = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    ("encoder.layer.", "encoder.layers."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".lambda_", ".ls"),
    (".attention.projection_layer.", ".attn.proj."),
    (".attention.", ".attn."),
)


def published_internvit(weights):
    """Return weights of transformers' InternViT under the published keys."""
    state = {}
    for key, value in weights.items():
        for new, published in _INTERNVIT_NAMES:
            key = key.replace(new, published)
        state[key] = value
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace(".q_proj.", f".{name}_proj.")) for name in "qkv"]
        state[key.replace(".q_proj.", ".qkv.")] = np.concatenate(parts)
    return state


def with_dummy_heads(state, width, seed=1):
    """Return InternViT's weights with heads that do nothing behind the real ones.

    Their queries, keys and values are random, but the output projection ignores them.
    """
    generator = np.random.default_rng(seed)

    def padded(block):
        rows = generator.standard_normal((width - len(block), *block.shape[1:]))
        return np.concatenate([block, rows.astype(block.dtype)])

    def changed(key, value):
        if ".qkv." in key:
            return np.concatenate([padded(block) for block in np.split(value, 3)])
        if "q_norm" in key or "k_norm" in key:
            return padded(value)
        if key.endswith(".attn.proj.weight"):
            return np.pad(value, ((0, 0), (0, width - value.shape[1])))
        return value

    return {key: changed(key, value) for key, value in state.items()}
