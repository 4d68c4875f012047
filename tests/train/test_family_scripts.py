"""The scripts of GhostVis and NVLM: their flags, and two steps of every stage of a tiny run."""

import importlib.util
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import numpy

from dl_techniques.models.model_size import without_weights
from dl_techniques.models.nvlm import NVLM
from dl_techniques.training import tiny_settings
from dl_techniques.training.ghostvis_flags import parse_flags
from dl_techniques.training.nvlm_stages import guide_stages, paper_stages
from dl_techniques.training.recipes import get_recipe, stage_configs
from dl_techniques.training.run import _stage as stage_of
from dl_techniques.training.run_folder import load_checkpoint
from dl_techniques.training.run_model import new_model, new_processor

SCRIPTS = pathlib.Path(__file__).parents[2] / "train"
ARCHITECTURES = ("decoder", "cross_attention", "hybrid")
SMALL = {"captions": 12, "turns": 2, "vocab_size": 450}


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_smaller_model(module, num_layers):
    get_config = module.get_config
    changes = {"language_config": {"num_layers": num_layers}, "vision_config": {"depth": 1}}
    module.get_config = lambda flags: {**get_config(flags), "model_changes": changes}
    return module


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "sources"
    return tiny_settings.write_tiny_sources(folder, None, **SMALL)


@pytest.fixture
def small(sources, monkeypatch):
    """Two steps of two rows, a few questions."""
    monkeypatch.setattr(tiny_settings, "write_tiny_sources", lambda folder, data: sources)
    settings = tiny_settings.tiny_settings

    def shortened(data):
        quick = {"optimizer": {"type": "adamw"}, "held_out_questions": 4, "log_every": 1}
        return {**settings(data), **quick}

    monkeypatch.setattr(tiny_settings, "tiny_settings", shortened)
    for name in ("contrast_stage", "text_stage", "align_stage", "sft_stage"):
        make = getattr(tiny_settings, name)

        def quick(*args, make=make, **more):
            return {**make(*args, **more), "steps": 2, "batch_size": 2, "max_text_length": 192}

        monkeypatch.setattr(tiny_settings, name, quick)


def weights(folder) -> dict:
    model, _ = load_checkpoint(folder)
    return {v.path: np.array(numpy(v.value)) for v in model.weights}


def moved(before, after) -> set:
    return {path for path, x in after.items() if not np.array_equal(before[path], x)}


def test_ghostvis_from_text_to_answers(small, tmp_path, capsys):
    folders = [str(tmp_path / name) for name in ("base", "mid", "sft")]
    base = with_smaller_model(script("ghostvis_base"), num_layers=5)
    base.train(["--tiny", "--output", folders[0]])
    for name, source, folder in zip(("align", "sft"), folders[:2], folders[1:], strict=True):
        script(f"ghostvis_{name}").train(["--tiny", "--source", source, "--output", folder])
    base, aligned, tuned = map(weights, folders)
    changed = moved(base, aligned)
    assert changed and all("modality_projection/" in path for path in changed)
    changed = moved(aligned, tuned)
    opened = {f"block_{i}" for i in range(1, 5)}
    blocks = {b for path in changed for b in path.split("/") if "language_decoder" in path}
    assert {block for block in blocks if block.startswith("block_")} == opened
    assert not any("vision_encoder" in path or "embedding" in path for path in changed)
    checks = json.loads((tmp_path / "sft" / "checks.json").read_text())
    assert set(checks) == {"sft"}
    assert set(checks["sft"]) == {"caption_loss", "caption_loss_blank", "text_loss"}
    assert all(0.0 < value < 20.0 for value in checks["sft"].values())
    assert "all" in json.loads((tmp_path / "sft" / "results.json").read_text())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["after", "captions", "blank", "text"] in rows
    names = ["base", "contrast", "align", "sft"]
    assert [row[0] for row in rows if len(row) == 4 and row[0] in names] == names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvlm_of_every_architecture(architecture, small, tmp_path):
    module = with_smaller_model(script("nvlm"), num_layers=2)
    if architecture != "cross_attention":  # One goes through all stages, the others the last one.
        get_config = module.get_config

        def with_last_stage(flags):
            config = get_config(flags)
            return {**config, "stages": config["stages"][-1:]}

        module.get_config = with_last_stage
    flags = ["--tiny", "--architecture", architecture, "--output", str(tmp_path)]
    module.train(module.parse_flags(flags))
    model, processor = load_checkpoint(tmp_path)
    assert model.architecture == architecture and model.processor is processor
    # A picture of 64 pixels: four tiles and a thumbnail.
    encoded = processor.encode_prompt(
        [{"role": "user", "content": "What?", "image": np.zeros((64, 64, 3), "uint8")}]
    )
    assert encoded.tiles == [5]
    placeholders = {"decoder": 20, "cross_attention": 0, "hybrid": 4}[architecture]
    assert encoded.token_ids.count(processor.tokenizer.token_to_id("<|image|>")) == placeholders
    answer = model.generate(
        [{"role": "user", "content": "What?", "image": np.zeros((64, 64, 3), "uint8")}],
        max_new_tokens=2,
    )
    assert isinstance(answer, str)


def ghostvis_config(stage, *flags):
    return script(f"ghostvis_{stage}").get_config(parse_flags(stage, list(flags), ""))


def test_the_guides_flags_of_alignment_and_fine_tuning():
    config = ghostvis_config("align", "--data", "hub")
    assert config["model"] == "ghostvis_1_5b" and config["mixture"] == "vision_pretrain"
    assert config["stages"][0]["learning_rates"] == {
        "vision_projector": 5e-5,
        "vision_resampler": 3e-5,
    }
    assert config["accumulation_steps"] == 16 and config["batch_size"] == 16
    assert config["optimizer"] == {"type": "adamw", "weight_decay": 0.01}
    config = ghostvis_config("align", "--data", "hub", "--devices=4")
    assert (config["accumulation_steps"], config["batch_size"]) == (4, 64)
    assert (config["layout"], config["devices"]) == ("data", 4)
    config = ghostvis_config("sft", "--data", "hub", "--total_batch_size=64")
    assert config["stages"][0] == {
        "name": "sft",
        "learning_rates": {
            "vision_projector": 3e-5,
            "vision_resampler": 3e-5,
            "language": 1e-6,
        },
        "unfreeze_last_blocks": {"language": 4},
    }
    assert config["max_epochs"] == 3.0 and config["accumulation_steps"] == 8
    config = ghostvis_config("base", "--data", "d", "--depth=20")
    assert config["model_changes"]["language_config"] == {"num_layers": 20}
    pooled = ghostvis_config("align", "--data=d", "--vision_resampler_mode=avgpool")
    assert pooled["stages"][0]["learning_rates"] == {"vision_projector": 5e-5}
    assert ghostvis_config("align", "--data=d", "--resume_from=x")["output_dir"] == "x"
    assert ghostvis_config("align", "--data=d")["output_dir"] == "mid_checkpoints"
    assert config["accumulation_steps"] == 524288 // (32 * 2048)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data FOLDER is needed"),
        (["--data=hub", "--vision_encoder_trainable=true"], "contradict each other"),
        (["--data=hub", "--total_batch_size=100"], "must be a multiple of 16"),
        (["--data=hub", "--vision_encoder_name=siglip_vit_l14"], "no public vision encoder"),
        (["--tiny", "--source=s", "--depth=20"], "--depth: of new weights, .* --source s stays"),
        (["--data=d", "--source=s", "--vision_num_tokens=32"], "--vision_num_tokens: of new"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(ValueError, match=message):
        ghostvis_config("align", *flags)


def test_a_source_brings_its_processor():
    new, kept = (ghostvis_config("align", "--data=d", *more) for more in ([], ["--source=s"]))
    assert (new["template"], kept["template"]) == ("ghostvis", get_recipe("default")["template"])
    kept = ghostvis_config("align", "--data=d", "--source=s", "--vision_resampler_mode=avgpool")
    assert kept["stages"][0]["learning_rates"] == {"vision_projector": 5e-5}
    module = script("nvlm")
    of_nvlm = [
        module.get_config(module.parse_flags(["--data=d", "--architecture=hybrid", *more]))
        for more in (["--max_num=4"], ["--model=hf://a/b", "--tokenizer=t"])
    ]
    names = ("template", "tile_tags", "placeholder_tiles")
    assert [of_nvlm[0][name] for name in names] == ["nvlm", True, "last"]
    assert of_nvlm[0]["image_processor"]["max_num"] == 4 and of_nvlm[0]["tokenizer"] is None
    assert of_nvlm[1]["image_processor"] is None and of_nvlm[1]["tokenizer"] == "t"
    assert [of_nvlm[1][name] for name in names] == [get_recipe("nvlm")[name] for name in names]
    with pytest.raises(ValueError, match="--model hf://a/b has its own tiles"):
        module.get_config(module.parse_flags(["--data=d", "--model=hf://a/b", "--max_num=4"]))


def test_changes_of_a_named_model():
    changes = {"language_config": {"num_layers": 2}, "resampler_config": {"num_tokens": 4}}
    config = {**get_recipe("default"), "model": "ghostvis_mini", "model_changes": changes}
    model = without_weights(lambda: new_model(config, vocab_size=50))
    assert len(model.language_decoder.blocks) == 2 and model.vocab_size == 50
    assert model.language_decoder.hidden_dim == 160 and model.tokens_per_image == 4
    assert model.resampler_config["mode"] == "avgpool"
    with pytest.raises(ValueError, match="'hf://owner/name' keeps its arguments"):
        new_model({**config, "model": "hf://owner/name"})


def test_backbones_take_the_settings_of_a_processor(monkeypatch):
    part = SimpleNamespace(remat=False)
    built = SimpleNamespace(vision_encoder=part, language_decoder=part)
    given = []
    monkeypatch.setattr(NVLM, "from_backbones", lambda **more: given.append(more) or built)
    settings = {"template": "nvlm", "tokenizer": "t"}
    images = {"kind": "nvlm", "image_size": 448, "max_num": 2}
    for changes in ({}, {**settings, "image_processor": images}):
        new_model({**get_recipe("nvlm"), **changes})
    assert not {*settings, "image_processor"} & set(given[0])
    assert given[1].items() >= settings.items() and given[1]["image_processor"].max_num == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "none"}, "template='none' must be one of"),
        ({"tile_tags": True}, "tile_tags need an image_processor of the kind 'nvlm'"),
        ({"tile_tags": True, "image_processor": {"kind": "internvl"}}, "of the kind 'nvlm'"),
    ],
)
def test_processors_that_cannot_be(changes, message):
    config = {**get_recipe("default"), "model": "nvlm_mini_x", **changes}
    model = without_weights(lambda: new_model(config))
    with pytest.raises(ValueError, match=message):
        new_processor(config, [], model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("order", [guide_stages, paper_stages])
def test_the_stages_fit_the_models(architecture, order):
    model = {"decoder": "d", "cross_attention": "x", "hybrid": "h"}[architecture]
    config = {**get_recipe("nvlm"), "model": f"nvlm_mini_{model}", "model_changes": None}
    skeleton = without_weights(lambda: new_model(config))
    for settings in stage_configs({**config, "stages": order(architecture)}):
        stage_of(settings, 1).check_patterns(skeleton)


def test_the_papers_numbers():
    pretrain, sft = paper_stages("decoder")
    assert pretrain["batch_size"] * pretrain["accumulation_steps"] == 2048
    assert pretrain["learning_rates"] == {"projection": 1e-4} and pretrain["alpha"] == 0.25
    assert round(pretrain["warmup_share"] * pretrain["steps"]) == 500
    assert sft["learning_rates"] == {"projection": 2e-6, "language": 2e-6}
    assert sft["max_text_length"] == 3200 and sft["max_tiles"] == 7
    assert "cross_attention" in str(paper_stages("hybrid")[0]["learning_rates"])
