"""transformers' SmolVLM in the sizes of our 222M NanoVLM: what the benchmarks run beside us."""

IMAGE_SIZE, IMAGE_TOKENS = 224, 49
VOCABULARY, IMAGE_ID = 49152, 49151


def smolvlm():
    """Return it with random weights."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        image_token_id=IMAGE_ID,
        tie_word_embeddings=True,
        scale_factor=2,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    )
    model = SmolVLMForConditionalGeneration(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == 222_081_600, count
    return model


def smolvlm_inputs(pixels, ids, labels=None, device: str = "cpu") -> dict:
    """Return its arguments for NumPy arrays: pixels [B, H, W, 3], ids and labels [B, S]."""
    import torch

    inputs = {
        "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, None].contiguous(),
        "input_ids": torch.from_numpy(ids).long(),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
    }
    if labels is not None:
        inputs["labels"] = torch.from_numpy(labels).long()
    return {name: x.to(device) for name, x in inputs.items()}
