"""Random tiny models of transformers, saved by it, and what they compute."""

import numpy as np
from internvit_names import published_internvit

IMAGE_ID = 39
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 500.0,
}
# The first release's fields of nanoVLM's `VLMConfig`, then what later ones add.
NANOVLM_CONFIG = {
    "vit_hidden_dim": 16,
    "vit_inter_dim": 24,
    "vit_patch_size": 4,
    "vit_img_size": 16,
    "vit_n_heads": 2,
    "vit_dropout": 0.0,
    "vit_n_blocks": 2,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "vit_model_type": "google/siglip-base-patch16-224",
    "lm_hidden_dim": 24,
    "lm_inter_dim": 32,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100000,
    "lm_max_position_embeddings": 64,
    "lm_vocab_size": 40,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_dropout": 0.0,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_max_length": 60,
    "lm_use_tokens": False,
    "lm_tie_weights": True,
    "lm_model_type": "HuggingFaceTB/SmolLM2-135M",
    "lm_tokenizer": "HuggingFaceTB/cosmo2-tokenizer",
    "lm_eos_token_id": 0,
    "mp_pixel_shuffle_factor": 2,
    "vlm_load_backbone_weights": True,
    "vlm_checkpoint_path": "checkpoints",
}
LATER = {
    "lm_base_vocab_size": 39,
    "extra_token_amount": 1,
    "vlm_extra_tokens": {"image_token": "<|image|>"},
    "mp_image_token_length": 4,
}


def randomise(reference, seed: int = 0):
    """Give every weight a random value and return the model."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=generator))
    return reference.eval()


def llama(tied=False, rope=None):
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = rope or {"rope_type": "default", "rope_theta": 100000.0}
    config = LlamaConfig(**SIZES, rms_norm_eps=1e-5, tie_word_embeddings=tied, rope_parameters=rope)
    return randomise(LlamaForCausalLM(config))


def qwen2(tied=True):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = Qwen2Config(**SIZES, tie_word_embeddings=tied, rope_parameters=rope)
    return randomise(Qwen2ForCausalLM(config))


DECODERS = {
    "smollm2": lambda: llama(tied=True),
    "llama2": lambda: llama(tied=False),
    "llama3": lambda: llama(tied=False, rope=LLAMA3),
    "qwen2 tied": lambda: qwen2(tied=True),
    "qwen2 untied": lambda: qwen2(tied=False),
}


def siglip(**changes):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return randomise(SiglipVisionModel(SiglipVisionConfig(**{**VISION, **changes})))


def clip(**changes):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return randomise(CLIPVisionModel(CLIPVisionConfig(**{**VISION, **changes})))


def whole_clip():
    from transformers import CLIPConfig, CLIPModel

    text = {k: SIZES[k] for k in SIZES if k != "num_key_value_heads"}
    return randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION)))


# Fields of InternViT's own config that tell its two kinds apart.
INTERNVIT_KINDS = {
    "6b": {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True},
    "300m": {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
}


def internvit(kind):
    """Return transformers' InternViT, which is published with another config and other keys."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    fields = INTERNVIT_KINDS[kind]
    config = InternVLVisionConfig(
        **VISION,
        norm_type=fields["norm_type"],
        attention_bias=fields["qkv_bias"],
        use_qk_norm=fields["qk_normalization"],
    )
    return randomise(InternVLVisionModel(config))


def internvit_config(kind):
    """Return the published kind of config of `internvit`."""
    return {**VISION, **INTERNVIT_KINDS[kind], "model_type": "intern_vit_6b"}


def internvit_state(reference):
    """Return the weights of `internvit` under the published keys."""
    return published_internvit(state_of(reference))


def smolvlm(kind="smolvlm", tied=False):
    import transformers

    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    config = getattr(transformers, f"{name}Config")(
        image_token_id=IMAGE_ID,
        scale_factor=2,
        tie_word_embeddings=tied,
        vision_config=VISION,
        text_config={
            **SIZES,
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    )
    return randomise(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def state_of(reference) -> dict[str, np.ndarray]:
    """Return the weights by name."""
    return {k: v.detach().numpy() for k, v in reference.state_dict().items()}


def outputs(reference, **inputs):
    """Return what a reference computes, hidden states included."""
    import torch

    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
    with torch.no_grad():
        return reference(**tensors, output_hidden_states=True)


def text_ids(*shape):
    return np.random.default_rng(0).integers(1, IMAGE_ID, shape)


def vlm_batch():
    """Return two neighbouring images in row 0, one in row 1, none in row 2."""
    generator = np.random.default_rng(0)
    ids = text_ids(3, 16).astype("int32")
    ids[0, 1:9] = ids[1, 6:10] = IMAGE_ID
    images = generator.uniform(-1, 1, (3, 2, 16, 16, 3)).astype("float32")
    counts = np.array([2, 1, 0], "int32")
    # transformers knows absent images by their zeros.
    images[np.arange(2) >= counts[:, None]] = 0
    return {"text_tokens": ids, "images": images, "num_images": counts}


def vlm_logits(reference, batch):
    """Return the logits of transformers' SmolVLM."""
    return outputs(
        reference,
        input_ids=batch["text_tokens"].astype("int64"),
        attention_mask=np.ones(batch["text_tokens"].shape, "int64"),
        pixel_values=batch["images"].transpose(0, 1, 4, 2, 3),
    ).logits.numpy()


def loaded_by_transformers(model_class, folder):
    """Return the model that transformers loads from a folder, with every key in its place."""
    model, info = model_class.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
    return model.eval()
