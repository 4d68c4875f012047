import keras
import numpy as np
import pytest
from references import llama, siglip
from tiny_models import tiny_config, tiny_nanovlm
from tiny_presets import (
    MARKERS,
    assert_same_weights,
    byte_tokenizer,
    picture,
    question,
    tiny_model,
)

from dl_techniques.checkpoints import export_nanovlm
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.presets import stop_ids_of
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.preprocessing.image_processors import (
    Idefics3ImageProcessor,
    NanoVLMImageProcessor,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a model with everything, its preset's folder); not to be changed."""
    folder = tmp_path_factory.mktemp("presets")
    model = tiny_model(folder / "tokenizer")
    model.stop_ids = (7,)
    model.training_data = "Ten pictures of squares."
    model.results = {"squares": 0.51234, "by size": {"small": 0.25, "count": 8}}
    model.save_to_preset(folder / "preset")
    return model, folder / "preset"


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_preset_is_complete_in_itself(saved, tmp_path):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = NanoVLM.from_preset(copied(folder, tmp_path / "elsewhere"))
    assert_same_weights(again, model)
    assert again.get_config() | {"name": ""} == model.get_config() | {"name": ""}
    assert again.processor.get_config() == model.processor.get_config()
    assert again.stop_ids == (7,)
    assert (again.training_data, again.results) == (model.training_data, model.results)
    asked = question(picture(tmp_path / "a.png"))
    assert again.generate(asked, 8) == model.generate(asked, 8)
    again.save_to_preset(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_model_card_states_what_is_known(saved, tmp_path):
    model, folder = saved
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dl_techniques\npipeline_tag: image-text-to-text\n")
    assert f"{model.count_params():,}" in card
    assert '"embed_dim": 16' in card
    assert "Ten pictures of squares." in card
    assert "|  |  | small | count |\n" in card
    assert "| squares | 0.5123 |  |  |\n| by size |  | 0.25 | 8 |\n" in card
    model = tiny_model(tmp_path)
    model.save_to_preset(tmp_path / "plain")
    assert (tmp_path / "plain/README.md").read_text().count("Not stated.") == 2


def test_shards_dtype_and_random_weights(saved, tmp_path):
    model, folder = saved
    model.save_to_preset(tmp_path / "shards", max_shard_bytes=20_000)
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    assert_same_weights(NanoVLM.from_preset(tmp_path / "shards", processor=None), model)
    half = NanoVLM.from_preset(folder, dtype="bfloat16")
    assert {v.dtype for v in half.weights} == {"bfloat16"}
    assert isinstance(half.generate(question(picture(tmp_path / "a.png")), 2), str)
    (folder_half := tmp_path / "half").mkdir()
    model.save_to_preset(folder_half, dtype="bfloat16")
    assert_same_weights(NanoVLM.from_preset(folder_half, dtype="bfloat16"), half)
    (copied(folder, tmp_path / "bare") / "model.safetensors").unlink()
    random = NanoVLM.from_preset(tmp_path / "bare", load_weights=False, processor=None)
    assert random.processor is None
    assert random.count_params() == model.count_params()
    kernel = random.modality_projection.weights[0], model.modality_projection.weights[0]
    assert not np.array_equal(*map(keras.ops.convert_to_numpy, kernel))


def test_a_preset_without_a_processor_or_with_another_tokenizer(saved, tmp_path):
    model, folder = saved
    bare = copied(folder, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ValueError, match="bare"):
        NanoVLM.from_preset(bare)
    loaded = NanoVLM.from_preset(bare, tokenizer=folder)
    assert loaded.processor.tokenizer.special_tokens == model.processor.tokenizer.special_tokens
    own = model.processor.tokenizer
    given = NanoVLM.from_preset(bare, tokenizer=own).processor.tokenizer
    assert given is not own and given.special_tokens == own.special_tokens
    loaded.processor = None
    loaded.save_to_preset(tmp_path / "alone")
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    assert NanoVLM.from_preset(tmp_path / "alone").processor is None


def test_stop_ids_are_those_of_all_files(tmp_path):
    config = {"eos_token_id": 3, "text_config": {"eos_token_id": [4, 3]}}
    assert stop_ids_of(tmp_path, config) == (3, 4)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 3]})
    assert stop_ids_of(tmp_path, config) == (5, 3, 4)
    for wrong in (-1, "3", 2.5, [3, -1], [[3]]):
        with pytest.raises(ValueError, match=r"eos_token_id=.*expected token ids"):
            stop_ids_of(tmp_path, {"eos_token_id": wrong})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, tmp_path, name):
    (copied(saved[1], tmp_path / "p") / name).unlink()
    with pytest.raises(ValueError, match=f"p' has no {name}|p holds no {name}|p has no {name}"):
        NanoVLM.from_preset(tmp_path / "p")


def test_what_is_no_model_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no folder 'nanovlm_giga'; on the hub: hf://owner/name"):
        NanoVLM.from_preset("nanovlm_giga")
    with pytest.raises(ValueError, match="revision='main' is for hf://"):
        NanoVLM.from_preset(saved[1], revision="main")
    llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"llama's, a language part.*from_backbones\(language="):
        NanoVLM.from_preset(tmp_path / "llama")
    folder = copied(saved[1], tmp_path / "other")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "model_class": "GhostVis"})
    with pytest.raises(ValueError, match="is a GhostVis, not a NanoVLM"):
        NanoVLM.from_preset(folder)
    write_json(folder / "config.json", {**config, "model_type": "bert"})
    with pytest.raises(ValueError, match="model_type='bert'; supported are .*siglip"):
        NanoVLM.from_preset(folder)
    write_json(folder / "config.json", {**config, "model_type": ["bert"]})
    with pytest.raises(ValueError, match=r"model_type=\['bert'\]; supported are"):
        NanoVLM.from_preset(folder)


def test_a_loaded_model_has_the_seeds_of_its_dropout(tmp_path):
    language = tiny_config()["language_config"] | {"dropout": 0.5}
    tiny_nanovlm(language_config=language).save_to_preset(tmp_path / "preset")
    again = NanoVLM.from_preset(tmp_path / "preset")
    # Keras makes what is missing at its first use, which compiled programs cannot do.
    assert any("seed" in variable.path for variable in again.variables)
    assert all(variable._value is not None for variable in again.variables)


def test_configurations_by_name(monkeypatch):
    monkeypatch.setattr(NanoVLM, "presets", {"tiny": tiny_config(), "open": tiny_config()})
    monkeypatch.setattr(NanoVLM, "public_weights", {"open": "hf://someone/nowhere"})
    model = NanoVLM.from_preset("tiny", load_weights=False, dtype="bfloat16")
    assert model.weights[0].dtype == "bfloat16" and model.processor is None
    with pytest.raises(ValueError, match=r"No weights.*'tiny'.*load_weights=False.*\['open'\]"):
        NanoVLM.from_preset("tiny")
    with pytest.raises(ConnectionError, match="hf://someone/nowhere is not in the local cache"):
        NanoVLM.from_preset("open")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vision_config", {"depth": 10**9}),
        ("language_config", {"num_layers": 10**6}),
        ("vision_config", {"embed_dim": 2**28, "num_heads": 2**20}),
        ("language_config", {"hidden_dim": 2**30, "mlp_dim": 2**30}),
        ("language_config", {"max_positions": "many", "width": 3}),
        ("projection_config", {"output_dim": 2**30}),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(saved, tmp_path, part, change):
    folder = copied(saved[1], tmp_path / "p")
    config = read_json(folder / "config.json")
    config["arguments"][part] |= change
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match=r"blocks|does not fit|must equal|expects|Unrecognized"):
        NanoVLM.from_preset(folder)


GRID = [f"<row_{r}_col_{c}>" for r in range(1, 9) for c in range(1, 9)]


def nanovlm_folder(folder, release):
    """Write a nanoVLM folder and its tokenizer's; return (model, config.json's path)."""
    options = {
        "first": {"fusion": "prefix", "template": "question_answer"},
        "second": {},
        "tiled": {
            "special": [*MARKERS, "<|image|>", "<|global_image|>", *GRID],
            "images": NanoVLMImageProcessor(16, 64),
        },
    }
    model = tiny_model(folder / "tokenizer", **options[release])
    export_nanovlm(model, folder / "nano", tokenizer="someone/tokenizer")
    return model, folder / "nano" / "config.json"


@pytest.mark.parametrize("release", ["first", "second", "tiled"])
def test_nanovlm_folders_take_a_tokenizer(tmp_path, release):
    model, path = nanovlm_folder(tmp_path, release)
    with pytest.raises(ConnectionError, match="hf://someone/tokenizer is not in the local cache"):
        NanoVLM.from_preset(path.parent)
    loaded = NanoVLM.from_preset(path.parent, tokenizer=tmp_path / "tokenizer")
    images = loaded.processor.image_processor
    assert (images.mean, images.std) == ((0.0,) * 3, (1.0,) * 3)
    template = "question_answer" if release == "first" else "chatml"
    assert loaded.processor.template.name == template
    assert loaded.image_token_id == model.image_token_id
    asked = question(picture(tmp_path / "a.png"))
    tokens = loaded.processor.encode_prompt(asked).token_ids
    if release == "tiled":
        assert isinstance(images, NanoVLMImageProcessor)
        tiles = images.tiles(tmp_path / "a.png")
        assert images.get_config() == model.processor.image_processor.get_config()
        # 20 x 13 becomes 64 x 48: three rows of four tiles, and the whole.
        assert tiles.layout[:4] == ("<|global_image|>", 0, "<row_1_col_1>", 1)
        assert tokens.count(loaded.image_token_id) == 13 * loaded.tokens_per_image
        assert len(loaded.processor.preprocess_tiles(tmp_path / "a.png")) == 13
    elif release == "second":
        expected = model.processor.encode_prompt(asked).token_ids
        assert tokens == expected
        # Only the normalisation differs, which the export has folded into the weights.
        model.processor.image_processor = type(images)(
            16, model.processor.image_processor.mean, 0.3, "bilinear", transparency="drop"
        )
        assert loaded.generate(asked, 6) == model.generate(asked, 6)
    assert isinstance(loaded.generate(asked, 2), str)
    alone = NanoVLM.from_preset(path.parent, processor=None)
    assert alone.processor is None
    assert_same_weights(alone, loaded)


def test_another_models_tokenizer_is_refused(tmp_path):
    _, path = nanovlm_folder(tmp_path, "second")
    byte_tokenizer(tmp_path / "longer", [*MARKERS, "<|more|>"])
    with pytest.raises(ValueError, match=r"'<\|image\|>' the id 260, the model has .*259"):
        NanoVLM.from_preset(path.parent, tokenizer=tmp_path / "longer")
    config = read_json(path)
    write_json(
        path, {**config, "vlm_extra_tokens": {"image_token": "<|image|>", "more": "<|more|>"}}
    )
    with pytest.raises(ValueError, match="tokenizer has 261 ids, the model only 260"):
        NanoVLM.from_preset(path.parent, tokenizer=tmp_path / "tokenizer")
    write_json(path, {**config, "lm_tokenizer": 3})
    with pytest.raises(ValueError, match=r"lm_tokenizer=3: expected a name on the hub"):
        NanoVLM.from_preset(path.parent)


def backbones(folder, tied=True):
    """Write a SigLIP and a Llama folder as their authors do; return their references."""
    vision, language = siglip(), llama(tied=tied)
    vision.save_pretrained(folder / "vision")
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 16, "width": 16},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write_json(folder / "vision/preprocessor_config.json", settings)
    language.resize_token_embeddings(300)
    language.save_pretrained(folder / "language")
    return vision, language


@pytest.mark.parametrize("tied", [True, False])
def test_from_backbones_joins_two_parts(tmp_path, tied):
    vision, language = backbones(tmp_path, tied)
    # 300 rows, of which the tokenizer uses 259: the vocabulary is not shrunk.
    byte_tokenizer(tmp_path / "language")
    model = NanoVLM.from_backbones(tmp_path / "vision", tmp_path / "language", scale_factor=2)
    assert (model.vocab_size, model.image_token_id) == (300, 259)
    assert model.language_decoder.tie_embeddings == tied
    table = keras.ops.convert_to_numpy(model.language_decoder.token_embedding.embeddings)
    theirs = language.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table, theirs)
    bias = keras.ops.convert_to_numpy(model.vision_encoder.norm.beta)
    np.testing.assert_array_equal(bias, vision.state_dict()["post_layernorm.bias"].numpy())
    assert isinstance(model.generate(question(picture(tmp_path / "a.png")), 2), str)
    model.save_to_preset(tmp_path / "preset")
    assert_same_weights(NanoVLM.from_preset(tmp_path / "preset"), model)

    # 350 special tokens more than there are rows: the vocabulary grows by their mean.
    byte_tokenizer(tmp_path / "language", [*MARKERS, *(f"<|{i}|>" for i in range(60))])
    model = NanoVLM.from_backbones(tmp_path / "vision", tmp_path / "language", scale_factor=2)
    assert (model.vocab_size, model.image_token_id) == (320, 319)
    assert model.language_decoder.tie_embeddings == tied
    table = keras.ops.convert_to_numpy(model.language_decoder.token_embedding.embeddings)
    np.testing.assert_array_equal(table[:300], theirs)
    np.testing.assert_allclose(table[300:], np.tile(theirs.mean(0), (20, 1)), rtol=1e-5, atol=1e-7)


def test_the_options_of_from_backbones(tmp_path):
    backbones(tmp_path)
    byte_tokenizer(tmp_path / "tokenizer")
    for part in ("vision", "language"):
        (tmp_path / part / "model.safetensors").unlink()
    write_json(tmp_path / "language/generation_config.json", {"eos_token_id": [7, 9]})
    model = NanoVLM.from_backbones(
        tmp_path / "vision",
        tmp_path / "language",
        2,
        projection_config={"use_bias": True},
        template="question_answer",
        tokenizer=tmp_path / "tokenizer",
        load_weights=False,
        dtype="bfloat16",
    )
    assert model.projection_config["use_bias"]
    assert not model.projection_config["use_gelu"]
    assert model.processor.template.name == "question_answer"
    assert {v.dtype for v in model.trainable_variables} == {"bfloat16"}
    # The last is that of config.json.
    assert model.stop_ids == (7, 9, 2)
    config = read_json(tmp_path / "language/config.json")
    assert model.processor.max_text_length == config["max_position_embeddings"]
    assert model.processor.tokens_per_image == model.tokens_per_image


def test_from_backbones_refuses_what_does_not_fit(tmp_path):
    backbones(tmp_path)
    byte_tokenizer(tmp_path / "language")
    vision, language = tmp_path / "vision", tmp_path / "language"
    with pytest.raises(ValueError, match="llama's; vision must be a SigLIPVisionTransformer"):
        NanoVLM.from_backbones(language, vision)
    with pytest.raises(ValueError, match="3"):
        NanoVLM.from_backbones(vision, language, scale_factor=3)
    byte_tokenizer(tmp_path / "plain", ["<|endoftext|>"])
    with pytest.raises(ValueError, match=r"chatml template needs.*<\|im_start\|>"):
        NanoVLM.from_backbones(vision, language, 2, tokenizer=tmp_path / "plain")
    settings = read_json(vision / "preprocessor_config.json")
    write_json(vision / "preprocessor_config.json", {**settings, "size": 32})
    with pytest.raises(
        ValueError, match=r"give \(32, 32\) pixels, the model was made for \(16, 16\)"
    ):
        NanoVLM.from_backbones(vision, language, scale_factor=2)
    (vision / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors"):
        NanoVLM.from_backbones(vision, language, scale_factor=2)
    (vision / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        NanoVLM.from_backbones(vision, language, scale_factor=2)


def test_a_save_that_fails_leaves_the_older_preset(saved, tmp_path, monkeypatch):
    folder = copied(saved[1], tmp_path / "p")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = tiny_model(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="dtype='int8'"):
        model.save_to_preset(folder, dtype="int8")
    model.results = {"a": {1, 2}}
    with pytest.raises(ValueError, match="model.results cannot be written as JSON"):
        model.save_to_preset(folder)
    model.results = "good"
    with pytest.raises(ValueError, match="must be a dict of scores"):
        model.save_to_preset(folder)
    model.results = {"a": {"x": np.float32(0.5)}}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dl_techniques.checkpoints.presets.write_model_card", stop)
        with pytest.raises(KeyboardInterrupt):
            model.save_to_preset(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    (folder / "notes.txt").write_text("mine")
    model.save_to_preset(folder)
    again = NanoVLM.from_preset(folder)
    assert again.stop_ids == () and again.results == {"a": {"x": 0.5}}
    assert not (folder / "generation_config.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_adapters_are_refused(tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    model.language_decoder.blocks[0].attention.q_proj.enable_lora(2)
    with pytest.raises(ValueError, match="q_proj is quantized or has a LoRA adapter"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


def test_nanovlm_refuses_what_it_cannot_prepare(tmp_path):
    model = tiny_model(tmp_path / "tokenizer", images=Idefics3ImageProcessor(16, 64))
    with pytest.raises(ValueError, match="cannot prepare images as a Idefics3ImageProcessor"):
        export_nanovlm(model, tmp_path / "nano")
    _, path = nanovlm_folder(tmp_path, "second")
    config = read_json(path)
    write_json(path, {**config, "lm_chat_template": "{{ messages }}"})
    with pytest.raises(ValueError, match="this template is not known; give processor=None"):
        NanoVLM.from_preset(path.parent, tokenizer=tmp_path / "tokenizer")
    write_json(path, {**config, "max_img_size": 64})
    with pytest.raises(ValueError, match="without a global_image_token"):
        NanoVLM.from_preset(path.parent, tokenizer=tmp_path / "tokenizer")


def test_nanovlm_exports_bring_their_tokenizer_and_template(tmp_path):
    model = tiny_model(tmp_path / "tokenizer", template="question_answer", image_token="<image>")
    export_nanovlm(model, tmp_path / "nano")
    again = NanoVLM.from_preset(tmp_path / "nano")
    assert again.processor.template.name == "question_answer"
    asked = question(picture(tmp_path / "a.png"))
    expected = model.processor.encode_prompt(asked).token_ids
    assert again.processor.encode_prompt(asked).token_ids == expected
