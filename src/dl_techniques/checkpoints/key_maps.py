"""The tables: our variables on the left, the checkpoint's keys on the right, for both directions.

Key names: transformers 5.23 and the hub's files for SigLIP, CLIP, Llama, Qwen2, SmolVLM and
Idefics3; OpenGVLab/InternVL for InternViT; huggingface/nanoVLM for its own (the same in all of its
releases).
"""

import dataclasses

from dl_techniques.checkpoints.key_map import Drop, KeyMap, Rule, Vocabulary
from dl_techniques.checkpoints.vision_key_maps import (
    CLIP,
    INTERNVIT,
    POSITION_IDS,
    SIGLIP,
    SIGLIP_RULES,
)

_ATTENTION = "block_{i}/attention"
_MLP = "block_{i}/mlp"

_LLAMA_RULES = (
    Rule("norm/scale", "norm.weight"),
    Rule("block_{i}/input_norm/scale", "layers.{i}.input_layernorm.weight"),
    Rule("block_{i}/post_attention_norm/scale", "layers.{i}.post_attention_layernorm.weight"),
    Rule(f"{_ATTENTION}/q_proj/kernel", "layers.{i}.self_attn.q_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/k_proj/kernel", "layers.{i}.self_attn.k_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/v_proj/kernel", "layers.{i}.self_attn.v_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/o_proj/kernel", "layers.{i}.self_attn.o_proj.weight", "transpose"),
    Rule(f"{_MLP}/gate_proj/kernel", "layers.{i}.mlp.gate_proj.weight", "transpose"),
    Rule(f"{_MLP}/up_proj/kernel", "layers.{i}.mlp.up_proj.weight", "transpose"),
    Rule(f"{_MLP}/down_proj/kernel", "layers.{i}.mlp.down_proj.weight", "transpose"),
)

_QWEN2_RULES = (
    *_LLAMA_RULES,
    Rule(f"{_ATTENTION}/q_proj/bias", "layers.{i}.self_attn.q_proj.bias"),
    Rule(f"{_ATTENTION}/k_proj/bias", "layers.{i}.self_attn.k_proj.bias"),
    Rule(f"{_ATTENTION}/v_proj/bias", "layers.{i}.self_attn.v_proj.bias"),
)

_NANOVLM_VISION_RULES = (
    Rule("patch_embedding/patch_projection/kernel", "patch_embedding.conv.weight", "patch kernel"),
    Rule("patch_embedding/patch_projection/bias", "patch_embedding.conv.bias"),
    Rule(
        "patch_embedding/position_embedding",
        "patch_embedding.position_embedding",
        "without leading 1",
    ),
    Rule("block_{i}/norm1/gamma", "blocks.{i}.ln1.weight"),
    Rule("block_{i}/norm1/beta", "blocks.{i}.ln1.bias"),
    Rule("block_{i}/norm2/gamma", "blocks.{i}.ln2.weight"),
    Rule("block_{i}/norm2/beta", "blocks.{i}.ln2.bias"),
    Rule(
        f"{_ATTENTION}/q_proj/kernel {_ATTENTION}/k_proj/kernel {_ATTENTION}/v_proj/kernel",
        "blocks.{i}.attn.qkv_proj.weight",
        "split, transpose",
    ),
    Rule(
        f"{_ATTENTION}/q_proj/bias {_ATTENTION}/k_proj/bias {_ATTENTION}/v_proj/bias",
        "blocks.{i}.attn.qkv_proj.bias",
        "split",
    ),
    Rule(f"{_ATTENTION}/o_proj/kernel", "blocks.{i}.attn.out_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/o_proj/bias", "blocks.{i}.attn.out_proj.bias"),
    Rule(f"{_MLP}/fc1/kernel", "blocks.{i}.mlp.fc1.weight", "transpose"),
    Rule(f"{_MLP}/fc1/bias", "blocks.{i}.mlp.fc1.bias"),
    Rule(f"{_MLP}/fc2/kernel", "blocks.{i}.mlp.fc2.weight", "transpose"),
    Rule(f"{_MLP}/fc2/bias", "blocks.{i}.mlp.fc2.bias"),
    Rule("norm/gamma", "layer_norm.weight"),
    Rule("norm/beta", "layer_norm.bias"),
)

_NANOVLM_DECODER_RULES = (
    Rule("norm/scale", "norm.weight"),
    Rule("block_{i}/input_norm/scale", "blocks.{i}.norm1.weight"),
    Rule("block_{i}/post_attention_norm/scale", "blocks.{i}.norm2.weight"),
    Rule(f"{_ATTENTION}/q_proj/kernel", "blocks.{i}.attn.q_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/k_proj/kernel", "blocks.{i}.attn.k_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/v_proj/kernel", "blocks.{i}.attn.v_proj.weight", "transpose"),
    Rule(f"{_ATTENTION}/o_proj/kernel", "blocks.{i}.attn.out_proj.weight", "transpose"),
    Rule(f"{_MLP}/gate_proj/kernel", "blocks.{i}.mlp.gate_proj.weight", "transpose"),
    Rule(f"{_MLP}/up_proj/kernel", "blocks.{i}.mlp.up_proj.weight", "transpose"),
    Rule(f"{_MLP}/down_proj/kernel", "blocks.{i}.mlp.down_proj.weight", "transpose"),
)


def _within(rules: tuple[Rule, ...], ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules of a part for a whole that has the part under these names."""
    return tuple(
        dataclasses.replace(
            rule,
            ours=" ".join(f"{ours}/{path}".lstrip("/") for path in rule.ours.split()),
            theirs=f"{theirs}.{rule.theirs}",
        )
        for rule in rules
    )


_ROTARY = Drop(r".*\brotary_emb\.inv_freq", "computed from rope_theta")
_TABLE, _HEAD = "token_embedding/embeddings", "token_embedding/reverse_embeddings"

LLAMA = KeyMap(
    "llama",
    _within(_LLAMA_RULES, "", "model"),
    drops=(_ROTARY,),
    vocabulary=Vocabulary(
        _TABLE, _HEAD, "model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.weight"
    ),
)

QWEN2 = dataclasses.replace(LLAMA, name="qwen2", rules=_within(_QWEN2_RULES, "", "model"))

NANOVLM = KeyMap(
    "nanovlm",
    (
        *_within(_NANOVLM_VISION_RULES, "vision_encoder", "vision_encoder"),
        Rule("modality_projection/proj/kernel", "MP.proj.weight", "transpose"),
        *_within(_NANOVLM_DECODER_RULES, "language_decoder", "decoder"),
    ),
    drops=(Drop(r"decoder\.rotary_embd\.inv_freq", "computed from lm_re_base"),),
    vocabulary=Vocabulary(
        f"language_decoder/{_TABLE}",
        f"language_decoder/{_HEAD}",
        "decoder.token_embedding.weight",
        "decoder.head.weight",
        "decoder.head.weight",
    ),
)

SMOLVLM = KeyMap(
    "smolvlm",
    (
        *_within(SIGLIP_RULES, "vision_encoder", "model.vision_model"),
        Rule(
            "modality_projection/proj/kernel",
            "model.connector.modality_projection.proj.weight",
            "transpose",
        ),
        *_within(_LLAMA_RULES, "language_decoder", "model.text_model"),
    ),
    drops=(POSITION_IDS, _ROTARY),
    vocabulary=Vocabulary(
        f"language_decoder/{_TABLE}",
        f"language_decoder/{_HEAD}",
        "model.text_model.embed_tokens.weight",
        "lm_head.weight",
        "model.text_model.embed_tokens.weight",
    ),
)

KEY_MAPS = {m.name: m for m in (SIGLIP, CLIP, INTERNVIT, LLAMA, QWEN2, NANOVLM, SMOLVLM)}
