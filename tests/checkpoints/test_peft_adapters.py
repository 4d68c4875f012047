import json

import numpy as np
import pytest
from adapted_models import move
from references import loaded_by_transformers, outputs
from safetensors.numpy import load_file
from tiny_models import place_images, random_ids, random_images, run, tiny_config, tiny_nanovlm
from tiny_presets import BARE

from dl_techniques.checkpoints import export_decoder, export_smolvlm
from dl_techniques.checkpoints.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from dl_techniques.checkpoints.peft_adapters import export_peft
from dl_techniques.models.lora import ATTENTION, enable_lora
from dl_techniques.models.quantization import quantize_base

EVERYWHERE = r"block_\d+/(attention/(q|k|v|o)_proj|mlp/(gate|up|down)_proj|mlp/fc1)"


def apply_adapters(reference, folder):
    """Change PyTorch's weights as PEFT's documentation says: W + alpha / r * B A."""
    import torch

    config = json.loads((folder / CONFIG_FILE).read_text())
    tensors = {
        key.removeprefix("base_model.model."): torch.from_numpy(value)
        for key, value in load_file(folder / WEIGHTS_FILE).items()
    }
    assert config["peft_type"] == "LORA" and config["bias"] == "none"
    modules = dict(reference.named_modules())
    with torch.no_grad():
        for name in config["target_modules"]:
            a, b = (tensors.pop(f"{name}.lora_{letter}.weight") for letter in "AB")
            assert a.shape[0] == b.shape[1] == config["r"]
            modules[name].weight += config["lora_alpha"] / config["r"] * b @ a
        for name in config["modules_to_save"] or ():
            for part, weight in modules[name].named_parameters():
                weight.copy_(tensors.pop(f"{name}.{part}"))
    assert tensors == {}
    return config


@pytest.mark.parametrize("kind, name", [("llama", "Llama"), ("qwen2", "Qwen2")])
def test_a_decoder_answers_the_same_in_torch(kind, name, tmp_path):
    import transformers

    language = tiny_config()["language_config"] | {"use_qkv_bias": kind == "qwen2"}
    model = tiny_nanovlm(language_config=language)
    export_decoder(model.language_decoder, tmp_path / "base")
    enable_lora(model, rank=4, alpha=6, also_train=["language_decoder/(norm|block_1/mlp)"])
    move(model.trainable_variables)
    export_peft(model, tmp_path / "adapters", kind, "owner/base")
    cls = getattr(transformers, f"{name}ForCausalLM")
    reference = loaded_by_transformers(cls, tmp_path / "base")
    ids = random_ids(2, 10)
    expected = run(model, {"text_tokens": ids})
    before = outputs(reference, input_ids=ids.astype("int64")).logits.numpy()
    config = apply_adapters(reference, tmp_path / "adapters")
    logits = outputs(reference, input_ids=ids.astype("int64")).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(before - expected).max() > 0.1
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "owner/base")
    assert "model.layers.0.self_attn.q_proj" in config["target_modules"]
    assert len(config["target_modules"]) == 8 and len(config["modules_to_save"]) == 4


def test_a_whole_model_answers_the_same_in_torch(tmp_path):
    import transformers

    model = tiny_nanovlm(projection_config=BARE)
    export_smolvlm(model, tmp_path / "base", image_mean=0.5, image_std=0.5)
    opened = ["modality_projection", "vision_encoder/norm"]
    enable_lora(model, EVERYWHERE, rank=4, alpha=6, also_train=opened)
    move(model.trainable_variables)
    export_peft(model, tmp_path / "adapters", "smolvlm")
    cls = transformers.SmolVLMForConditionalGeneration
    reference = loaded_by_transformers(cls, tmp_path / "base")
    config = apply_adapters(reference, tmp_path / "adapters")
    assert len(config["target_modules"]) == 2 * (4 + 1) + 2 * (4 + 3)
    ids = place_images(random_ids(2, 12), [(0, 1), (1, 3)])
    images = random_images(2, 1)
    logits = outputs(
        reference,
        input_ids=ids.astype("int64"),
        pixel_values=images.transpose(0, 1, 4, 2, 3),
    ).logits.numpy()
    expected = run(model, {"text_tokens": ids, "images": images})
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "pattern, also_train, kind, message",
    [
        (ATTENTION, ["modality_projection"], "llama", "proj/kernel: PEFT cannot save it"),
        ("vision_encoder/.*/q_proj", [], "llama", "block_0/attention/q_proj: no linear layer"),
        ("patch_projection", [], "smolvlm", "patch_projection: no linear layer of smolvlm"),
        (ATTENTION, ["token_embedding"], "smolvlm", "token_embedding/embeddings: PEFT cannot"),
        ("vision_encoder/.*/fc1", ["fc1/bias"], "smolvlm", "fc1/bias: PEFT cannot save it"),
    ],
)
def test_what_has_no_place_is_refused(pattern, also_train, kind, message, tmp_path):
    model = tiny_nanovlm(projection_config=BARE)
    enable_lora(model, pattern, rank=4, also_train=also_train)
    with pytest.raises(ValueError, match=message):
        export_peft(model, tmp_path / "adapters", kind)
    assert not (tmp_path / "adapters").exists()


def test_quantized_bases_are_refused(tmp_path):
    model = tiny_nanovlm(projection_config=BARE)
    quantize_base(model)
    enable_lora(model)
    with pytest.raises(ValueError, match="trained on quantized kernels"):
        export_peft(model, tmp_path / "adapters", "smolvlm")
