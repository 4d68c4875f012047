"""The tables of whole models with a `VisionConnector`: LLaVA-1.5, InternVL and NVLM-D."""

import dataclasses

from dl_techniques.checkpoints.key_map import Drop, KeyMap, Rule, Vocabulary
from dl_techniques.checkpoints.language_key_maps import HEAD, QWEN2_RULES, ROTARY, TABLE, within
from dl_techniques.checkpoints.vision_key_maps import (
    CLIP_RULES,
    INTERNVIT_RULES,
    INTERNVL_VISION_RULES,
    POSITION_IDS,
)

_PROJECTOR = "modality_projection/vision_projector"
# All of these formats name the decoder alike. A decoder without biases has no use for their lines.
_DECODER_RULES = within(QWEN2_RULES, "language_decoder", "language_model.model")
_VOCABULARY = Vocabulary(
    f"language_decoder/{TABLE}",
    f"language_decoder/{HEAD}",
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
)


def _projector_rules(norm: str, first: str, second: str) -> tuple[Rule, ...]:
    rules = [
        Rule(f"{_PROJECTOR}/input_norm/gamma", f"{norm}.weight"),
        Rule(f"{_PROJECTOR}/input_norm/beta", f"{norm}.bias"),
    ]
    for ours, theirs in (("fc1", first), ("fc2", second)):
        rules.append(Rule(f"{_PROJECTOR}/{ours}/kernel", f"{theirs}.weight", "transpose"))
        rules.append(Rule(f"{_PROJECTOR}/{ours}/bias", f"{theirs}.bias"))
    return tuple(rules)


def _llava_rules(vision: str) -> tuple[Rule, ...]:
    projector = "multi_modal_projector"
    linear = _projector_rules("", f"{projector}.linear_1", f"{projector}.linear_2")[2:]
    return (*within(CLIP_RULES, "vision_encoder", vision), *linear, *_DECODER_RULES)


_LLAVA_DROPS = (
    POSITION_IDS,
    ROTARY,
    Drop(
        r"vision_tower\.(vision_model\.)?post_layernorm\.(weight|bias)",
        "acts on the pooled class token only: LLaVA reads the tokens before it",
    ),
)
# As transformers 5 writes it.
_LLAVA_5 = KeyMap("llava", _llava_rules("vision_tower"), _LLAVA_DROPS, _VOCABULARY)
# As the hub's files are; every version of transformers reads them.
LLAVA = KeyMap(
    "llava",
    _llava_rules("vision_tower.vision_model"),
    _LLAVA_DROPS,
    _VOCABULARY,
    layouts=(_LLAVA_5,),
)

INTERNVL = KeyMap(
    "internvl",
    (
        *within(INTERNVL_VISION_RULES, "vision_encoder", "vision_tower"),
        *_projector_rules(
            "multi_modal_projector.layer_norm",
            "multi_modal_projector.linear_1",
            "multi_modal_projector.linear_2",
        ),
        *_DECODER_RULES,
    ),
    (ROTARY,),
    _VOCABULARY,
)

INTERNVL_CHAT = KeyMap(
    "internvl_chat",
    (
        *within(INTERNVIT_RULES, "vision_encoder", "vision_model"),
        *_projector_rules("mlp1.0", "mlp1.1", "mlp1.3"),
        *_DECODER_RULES,
    ),
    (ROTARY,),
    _VOCABULARY,
)

NVLM_D = dataclasses.replace(INTERNVL_CHAT, name="nvlm_d")
