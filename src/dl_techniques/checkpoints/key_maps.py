"""The tables: our variables on the left, the checkpoint's keys on the right, for both directions.

Key names: transformers 5.23 and the hub's files for SigLIP, CLIP, Llama, Qwen2, SmolVLM and
Idefics3, LLaVA and InternVL; OpenGVLab/InternVL for InternViT and its own InternVL, nvidia for
NVLM-D; huggingface/nanoVLM for its own (the same in all of its releases).
"""

from dl_techniques.checkpoints.connector_key_maps import INTERNVL, INTERNVL_CHAT, LLAVA, NVLM_D
from dl_techniques.checkpoints.key_map import Drop, KeyMap, Rule, Vocabulary
from dl_techniques.checkpoints.language_key_maps import (
    HEAD,
    LLAMA,
    LLAMA_RULES,
    QWEN2,
    ROTARY,
    TABLE,
    within,
)
from dl_techniques.checkpoints.vision_key_maps import (
    CLIP,
    INTERNVIT,
    POSITION_IDS,
    SIGLIP,
    SIGLIP_RULES,
)

_ATTENTION = "block_{i}/attention"
_MLP = "block_{i}/mlp"

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

NANOVLM = KeyMap(
    "nanovlm",
    (
        *within(_NANOVLM_VISION_RULES, "vision_encoder", "vision_encoder"),
        Rule("modality_projection/proj/kernel", "MP.proj.weight", "transpose"),
        *within(_NANOVLM_DECODER_RULES, "language_decoder", "decoder"),
    ),
    drops=(Drop(r"decoder\.rotary_embd\.inv_freq", "computed from lm_re_base"),),
    vocabulary=Vocabulary(
        f"language_decoder/{TABLE}",
        f"language_decoder/{HEAD}",
        "decoder.token_embedding.weight",
        "decoder.head.weight",
        "decoder.head.weight",
    ),
)

SMOLVLM = KeyMap(
    "smolvlm",
    (
        *within(SIGLIP_RULES, "vision_encoder", "model.vision_model"),
        Rule(
            "modality_projection/proj/kernel",
            "model.connector.modality_projection.proj.weight",
            "transpose",
        ),
        *within(LLAMA_RULES, "language_decoder", "model.text_model"),
    ),
    drops=(POSITION_IDS, ROTARY),
    vocabulary=Vocabulary(
        f"language_decoder/{TABLE}",
        f"language_decoder/{HEAD}",
        "model.text_model.embed_tokens.weight",
        "lm_head.weight",
        "model.text_model.embed_tokens.weight",
    ),
)

KEY_MAPS = {
    m.name: m
    for m in (
        *(SIGLIP, CLIP, INTERNVIT, LLAMA, QWEN2, NANOVLM, SMOLVLM),
        *(LLAVA, INTERNVL, INTERNVL_CHAT, NVLM_D),
    )
}
