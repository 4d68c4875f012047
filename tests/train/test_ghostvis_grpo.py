"""The GRPO script, as it is called."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from tiny_models import fill, numpy

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.models.ghost_vis import GhostVis
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer
from dl_techniques.training import grpo_run
from dl_techniques.training.run_folder import FINAL_MODEL, load_checkpoint

SCRIPT = pathlib.Path(__file__).parents[2] / "train" / "ghostvis_grpo.py"
LOGGED = {"loss", "reward", "kl", "clipped", "advantage_std", "answer_length", "equal_groups"}


def script():
    spec = importlib.util.spec_from_file_location("ghostvis_grpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved_model(folder) -> GhostVis:
    """Write `preset`, and `run/sft/model.keras` with its processor above it."""
    model = GhostVis(
        vision_config={"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1}
        | {"num_heads": 2, "mlp_ratio": 2.0},
        projector_config={"output_dim": 8, "hidden_dim": 8},
        language_config={"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}
        | {"max_positions": 128},
        vocab_size=129,
        image_token_id=128,
    )
    fill(model)
    tokenizer = CharacterTokenizer(128)
    tokenizer.add_special_tokens(["<|image|>"])
    model.processor = VQADataProcessor(
        32, tokenizer=tokenizer, image_token_id=128, tokens_per_image=4
    )
    model.save_to_preset(folder / "preset")
    (folder / "run" / "sft").mkdir(parents=True)
    model.save(folder / "run" / "sft" / "model.keras")
    model.processor.save(folder / "run")
    return model


def weights(model) -> dict[str, np.ndarray]:
    return {v.path.partition("/")[2]: np.array(numpy(v.value)) for v in model.variables}


def call(*arguments):
    module = script()
    return module.train(module.get_arguments([*map(str, arguments), "--max_new_tokens=4"]))


def test_a_tiny_run_from_a_keras_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grpo_run, "TINY_PICTURES", {"train": 4, "heldout": 2})
    before = weights(saved_model(tmp_path))
    source, output = tmp_path / "run" / "sft" / "model.keras", tmp_path / "chatrl_checkpoints"
    flags = ("--num_steps=2", "--num_samples=3", "--device_batch_size=2", "--llm_lr=0.01")
    results = call(
        *("--source", source, "--tiny", "--output", output, *flags),
        "--unfreeze_llm_layers=1",
    )
    assert f"before, {results['reward_after']:.4f} after 2 steps" in capsys.readouterr().out
    assert json.loads((output / "results.json").read_text()) == results
    assert 0 <= results["reward_before"] <= 1 and results["steps"] == 2
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line.pop("step") for line in lines] == [1, 2]
    assert all(set(line) == LOGGED for line in lines)
    # Nothing moves where no answer was right: the rewards of random weights are mostly 0.
    model, _ = load_checkpoint(output)
    after = weights(model)
    assert set(before) == set(after)
    for path, value in before.items():
        if "block_1" not in path:
            np.testing.assert_array_equal(value, after[path])


def test_a_run_on_files_from_a_preset(tmp_path):
    before = weights(saved_model(tmp_path))
    rows = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "What?", "answer": "a"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    call(
        *("--source", tmp_path / "preset", "--data", tmp_path / "rows.jsonl", "--output", output),
        *("--num_steps=1", "--num_samples=2", "--device_batch_size=2", "--held_out_share=0.3"),
        *("--unfreeze_llm_layers=0", "--llm_lr=0", "--projector_lr=0.1", "--kl_coef=0"),
    )
    after = weights(load_checkpoint(output)[0])
    assert (output / FINAL_MODEL).is_file()
    for path, value in before.items():
        if "vision_projector" not in path:
            np.testing.assert_array_equal(value, after[path])


def test_what_is_no_source_is_refused(tmp_path):
    saved_model(tmp_path)
    with pytest.raises(ValueError, match="There is no file"):
        grpo_run.load_source(str(tmp_path / "absent.keras"))
    (tmp_path / "run" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="needs its processor"):
        grpo_run.load_source(str(tmp_path / "run" / "sft" / "model.keras"))


def test_both_sides_of_the_data_must_have_questions(tmp_path):
    row = {"question": "What?", "answer": "a"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="both must have some"):
        grpo_run.read_questions_of(str(tmp_path / "rows.jsonl"), 0.5)


def test_held_out_questions_of_their_own(tmp_path):
    for name, number in (("learn", 3), ("held_out", 2)):
        rows = [{"question": f"{name} {k}?", "answer": "a"} for k in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("learn", "held_out")]
    sides = grpo_run.read_questions_of(*files)
    asked = [[sample["messages"][0]["content"] for sample in side] for side in sides]
    assert asked == [["learn 0?", "learn 1?", "learn 2?"], ["held_out 0?", "held_out 1?"]]
    settings = script().get_arguments(["--source=x", f"--data={files[0]}", "--held_out=y"])
    assert settings.held_out == "y"
    with pytest.raises(SystemExit):
        script().get_arguments(["--source=x", "--data=y", "--held_out=z", "--held_out_share=0.5"])
