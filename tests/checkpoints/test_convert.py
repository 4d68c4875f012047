"""`dl-techniques convert` and `info` on every format."""

import keras
import pytest
from command_line import check_one_line_error
from references import llama, siglip
from tiny_presets import assert_same_weights, picture, tiny_model

from dl_techniques.checkpoints import Checkpoint
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.models.nano_vlm import NanoVLM


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """(a model, its preset's folder); not to be changed."""
    folder = tmp_path_factory.mktemp("convert")
    model = tiny_model(folder / "tokenizer")
    model.save_to_preset(folder / "preset")
    return model, folder / "preset"


def test_convert_to_every_format_and_back(command, preset, tmp_path):
    model, folder = preset
    for to in ("smolvlm", "nanovlm", "keras", "llama", "siglip"):
        code, out, err = command("convert", folder, tmp_path / to, "--to", to)
        assert (code, out.replace("\n", ""), err) == (0, f"{tmp_path / to} written.", "")
    assert_same_weights(NanoVLM.from_preset(tmp_path / "keras"), model)
    flags = ["--to", "keras", "--tokenizer", folder]
    for source in ("smolvlm", "nanovlm"):
        target = tmp_path / f"{source}.keras"
        code, out, _ = command("convert", tmp_path / source, target, *flags)
        assert code == 0 and "holds no tokenizer" in out
        again = keras.saving.load_model(target)
        assert_same_weights(again.language_decoder, model.language_decoder)
        # The same pictures give the same answers, each through its own normalisation.
        asked = [{"role": "user", "content": "Why?", "image": picture(tmp_path / "a.png")}]
        loaded = NanoVLM.from_preset(tmp_path / source, tokenizer=folder)
        if source == "smolvlm":
            assert loaded.generate(asked, 6) == model.generate(asked, 6)
    for part in ("llama", "siglip"):
        flags = ["--to", part, "--dtype", "bfloat16"]
        assert command("convert", tmp_path / part, tmp_path / f"{part}16", *flags)[0] == 0
        with Checkpoint(tmp_path / f"{part}16") as file:
            assert {file.dtype(key) for key in file.keys()} == {"BF16"}
        target = tmp_path / f"{part}.keras"
        code, out, _ = command("convert", tmp_path / part, target, "--to", "keras")
        assert code == 0 and "tokenizer" not in out
    decoder = keras.saving.load_model(tmp_path / "llama.keras")
    assert_same_weights(decoder, model.language_decoder)
    encoder = keras.saving.load_model(tmp_path / "siglip.keras")
    assert_same_weights(encoder, model.vision_encoder)


def test_convert_names_what_is_wrong(command, preset, tmp_path):
    _, folder = preset
    target = tmp_path / "out"
    result = command("convert", folder, target, "--to", "gguf")
    check_one_line_error(result, "to='gguf'", "smolvlm")
    check_one_line_error(command("convert", target, target, "--to", "llama"), "no folder")
    llama().save_pretrained(tmp_path / "llama")
    result = command("convert", tmp_path / "llama", target, "--to", "smolvlm")
    check_one_line_error(result, "LanguageDecoder alone")
    result = command("convert", tmp_path / "llama", target, "--to", "siglip")
    check_one_line_error(result, "LanguageDecoder alone")
    result = command("convert", folder, tmp_path / "a.keras", "--to", "keras", "--dtype", "float16")
    check_one_line_error(result, "own dtype")
    result = command("convert", "hf://someone/nowhere", target, "--to", "llama")
    check_one_line_error(result, "not in the local cache")
    assert not target.exists()


def test_info_tells_format_parameters_and_dtype(command, preset, tmp_path):
    model, folder = preset
    code, out, _ = command("info", folder)
    count = f"{model.count_params():,}"
    assert code == 0
    assert "format        dl_techniques" in out and "architecture  NanoVLM" in out
    assert f"dtype         F32 {count}" in out
    assert out.splitlines()[-1].split()[:2] == ["total", count]
    assert "embed_dim=16" in out
    for to in ("smolvlm", "nanovlm", "keras"):
        command("convert", folder, tmp_path / to, "--to", to, "--dtype", "bfloat16")
        code, out, _ = command("info", tmp_path / to)
        name = "dl_techniques" if to == "keras" else to
        assert f"format        {name}" in out and f"dtype         BF16 {count}" in out
        assert out.splitlines()[-1].split()[:2] == ["total", count]
    for name, reference, architecture in (
        ("llama", llama(), "LanguageDecoder"),
        ("siglip", siglip(), "SigLIPVisionTransformer"),
    ):
        reference.save_pretrained(tmp_path / name)
        code, out, _ = command("info", tmp_path / name)
        assert code == 0
        assert f"format        {name}" in out and f"architecture  {architecture}" in out
        # Another program's folder without its config: told by its keys.
        (tmp_path / name / "config.json").unlink()
        code, out, _ = command("info", tmp_path / name / "model.safetensors")
        assert f"format        {name} (by its keys; no config.json)" in out


def test_info_loads_nothing(command, preset, tmp_path):
    _, folder = preset
    config = read_json(folder / "config.json")
    assert config["model_class"] == "NanoVLM"
    (tmp_path / "pickle.bin").write_bytes(b"x")
    check_one_line_error(command("info", tmp_path / "pickle.bin"), "is a pickle")
    check_one_line_error(command("info", tmp_path), "is a pickle")
