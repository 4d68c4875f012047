"""Copies the weights of transformers' models into ours and runs theirs."""

import numpy as np
from tiny_models import fill

from dl_techniques.models.nano_vlm import NanoVLM

SMOLVLM_IMAGE_ID = 39


def state_of(reference) -> dict:
    """Return {name: NumPy array} of a PyTorch module's weights."""
    return {k: v.detach().cpu().numpy() for k, v in reference.state_dict().items()}


def copy_linear(layer, state: dict, name: str) -> None:
    """Copy a PyTorch linear layer into a Dense layer."""
    layer.kernel.assign(state[f"{name}.weight"].T)
    if layer.use_bias:
        layer.bias.assign(state[f"{name}.bias"])


def copy_norm(layer, state: dict, name: str) -> None:
    """Copy a LayerNorm or an RMSNorm."""
    if f"{name}.bias" in state:
        layer.gamma.assign(state[f"{name}.weight"])
        layer.beta.assign(state[f"{name}.bias"])
    else:
        layer.scale.assign(state[f"{name}.weight"])


def copy_vision(encoder, state: dict, prefix: str) -> None:
    """Copy a SigLIP encoder (also that of Idefics3 and SmolVLM)."""
    patch = encoder.patch_embedding
    # (out, in, height, width) -> (height, width, in, out), flattened.
    kernel = state[f"{prefix}embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    patch.patch_projection.kernel.assign(kernel.reshape(-1, encoder.embed_dim))
    patch.patch_projection.bias.assign(state[f"{prefix}embeddings.patch_embedding.bias"])
    patch.position_embedding.assign(state[f"{prefix}embeddings.position_embedding.weight"])
    for i, block in enumerate(encoder.blocks):
        name = f"{prefix}encoder.layers.{i}."
        copy_norm(block.norm1, state, f"{name}layer_norm1")
        copy_norm(block.norm2, state, f"{name}layer_norm2")
        for part in "qkv":
            projection = getattr(block.attention, f"{part}_proj")
            copy_linear(projection, state, f"{name}self_attn.{part}_proj")
        copy_linear(block.attention.o_proj, state, f"{name}self_attn.out_proj")
        copy_linear(block.mlp.fc1, state, f"{name}mlp.fc1")
        copy_linear(block.mlp.fc2, state, f"{name}mlp.fc2")
    copy_norm(encoder.norm, state, f"{prefix}post_layernorm")


def copy_language(decoder, state: dict, prefix: str) -> None:
    """Copy a Llama or Qwen2 model; an untied head from `lm_head.weight`."""
    decoder.token_embedding.embeddings.assign(state[f"{prefix}embed_tokens.weight"])
    if not decoder.tie_embeddings:
        decoder.token_embedding.reverse_embeddings.assign(state["lm_head.weight"].T)
    for i, block in enumerate(decoder.blocks):
        name = f"{prefix}layers.{i}."
        copy_norm(block.input_norm, state, f"{name}input_layernorm")
        copy_norm(block.post_attention_norm, state, f"{name}post_attention_layernorm")
        for part in "qkvo":
            projection = getattr(block.attention, f"{part}_proj")
            copy_linear(projection, state, f"{name}self_attn.{part}_proj")
        for part in ("gate", "up", "down"):
            copy_linear(getattr(block.mlp, f"{part}_proj"), state, f"{name}mlp.{part}_proj")
    copy_norm(decoder.norm, state, f"{prefix}norm")


def randomise(reference, seed: int = 0, scale: float = 0.1):
    """Give every weight a random value (biases and norms begin as zeros and ones) and return it."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            noise = scale * torch.randn(weight.shape, generator=generator)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(centre + noise)
    return reference.eval()


def run_reference(reference, **inputs):
    """Return the reference's output for NumPy inputs, hidden states included, as NumPy."""
    import torch

    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
    with torch.no_grad():
        return reference(**tensors, output_hidden_states=True)


def tiny_smolvlm(**options):
    """Return a random tiny SmolVLM of transformers; for the options see `randomise`."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        image_token_id=SMOLVLM_IMAGE_ID,
        scale_factor=2,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "pad_token_id": 0,
        },
    )
    return randomise(SmolVLMForConditionalGeneration(config), **options)


def smolvlm_of(state: dict):
    """Return our model with the weights of `tiny_smolvlm`."""
    model = NanoVLM(
        {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        | {"mlp_ratio": 2.0},
        {"hidden_dim": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 32}
        | {"rope_theta": 100000.0, "max_positions": 64},
        {"input_dim": 16, "output_dim": 24, "scale_factor": 2}
        | {"use_gelu": False, "use_layer_norm": False, "use_bias": False},
        vocab_size=40,
        image_token_id=SMOLVLM_IMAGE_ID,
    )
    fill(model)
    copy_vision(model.vision_encoder, state, "model.vision_model.")
    connector = "model.connector.modality_projection.proj"
    copy_linear(model.modality_projection.proj, state, connector)
    copy_language(model.language_decoder, state, "model.text_model.")
    return model
