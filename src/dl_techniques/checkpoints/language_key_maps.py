"""The tables of decoders, Llama and Qwen2, and how a part's table becomes a whole's."""

import dataclasses

from dl_techniques.checkpoints.key_map import Drop, KeyMap, Rule, Vocabulary

_ATTENTION = "block_{i}/attention"
_MLP = "block_{i}/mlp"

LLAMA_RULES = (
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

QWEN2_RULES = (
    *LLAMA_RULES,
    Rule(f"{_ATTENTION}/q_proj/bias", "layers.{i}.self_attn.q_proj.bias"),
    Rule(f"{_ATTENTION}/k_proj/bias", "layers.{i}.self_attn.k_proj.bias"),
    Rule(f"{_ATTENTION}/v_proj/bias", "layers.{i}.self_attn.v_proj.bias"),
)


def within(rules: tuple[Rule, ...], ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules of a part for a whole that has the part under these names."""
    return tuple(
        dataclasses.replace(
            rule,
            ours=" ".join(f"{ours}/{path}".lstrip("/") for path in rule.ours.split()),
            theirs=f"{theirs}.{rule.theirs}",
        )
        for rule in rules
    )


ROTARY = Drop(r".*\brotary_emb\.inv_freq", "computed from rope_theta")
TABLE, HEAD = "token_embedding/embeddings", "token_embedding/reverse_embeddings"

LLAMA = KeyMap(
    "llama",
    within(LLAMA_RULES, "", "model"),
    drops=(ROTARY,),
    vocabulary=Vocabulary(
        TABLE, HEAD, "model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.weight"
    ),
)

QWEN2 = dataclasses.replace(LLAMA, name="qwen2", rules=within(QWEN2_RULES, "", "model"))
