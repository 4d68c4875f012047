"""A whole run from settings: what it refuses, what it writes, and on which data."""

import base64
import json
import shutil

import keras
import numpy as np
import pytest
from micro_config import micro_config
from PIL import Image
from tiny_chat import chat_processor
from toy_stages import align

from dl_techniques.datasets.epoch_stream import EpochStream
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import answer_questions
from dl_techniques.preprocessing.image_processors import NVLMImageProcessor
from dl_techniques.preprocessing.images import load_image
from dl_techniques.training import run
from dl_techniques.training.progress import ProgressReport
from dl_techniques.training.recipes import RECIPES, check_config, get_recipe
from dl_techniques.training.run_data import stage_data
from dl_techniques.training.run_folder import load_checkpoint
from dl_techniques.training.run_model import new_model, new_processor

FILES = {
    "checkpoints",
    "config.json",
    "contact_sheet.png",
    "log.jsonl",
    "loss_curve.png",
    "nanovlm_final.keras",
    "pictures",
    "preprocessor_config.json",
    "results.json",
    "tensorboard",
    "train",
    "versions.json",
}


@pytest.fixture(autouse=True)
def _policy():
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory):
    """The folder of a run on generated shapes, what it returned, and what it evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    evaluated = []
    with pytest.MonkeyPatch.context() as patch:
        evaluate = run.final_evaluation

        def keep(*args):
            evaluated.extend(args)
            return evaluate(*args)

        patch.setattr(run, "final_evaluation", keep)
        return folder, run.run_training(micro_config(folder)), evaluated


def test_a_run_writes_all_its_files(shapes_run):
    folder, results, _ = shapes_run
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    assert names - FILES <= {"tokenizer.model", "tokenizer_config.json", "added_tokens.json"}
    assert json.loads((folder / "config.json").read_text()) == micro_config(folder)
    assert json.loads((folder / "results.json").read_text()) == results
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 1 + len(rows)))
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["keras"] == keras.__version__
    assert versions["backend"] == keras.backend.backend()
    for path in (folder / "contact_sheet.png", *sorted((folder / "pictures").iterdir())):
        with Image.open(path) as picture:
            picture.load()


def test_results_count_every_held_out_question(shapes_run):
    folder, results, _ = shapes_run
    config = micro_config(folder)
    _, held_out = run.load_data(config)
    count = sum(len(sample["kinds"]) for sample in held_out)
    assert 16 <= count < 16 + 6
    assert results["all"]["questions"] == count
    assert sum(row["questions"] for row in results.values()) == 2 * count
    for row in results.values():
        assert set(row) == {"exact_match", "blank_images", "questions"}
        assert 0 <= row["exact_match"] <= 1 and 0 <= row["blank_images"] <= 1
    assert len(list((folder / "pictures").iterdir())) == min(20, count)


def test_a_loaded_checkpoint_answers_as_the_trained_model(shapes_run):
    folder, _, (trained, held_out, _) = shapes_run
    model, _ = load_checkpoint(folder)
    for expected, found in zip(trained.weights, model.weights, strict=True):
        values = [keras.ops.convert_to_numpy(v.value) for v in (expected, found)]
        np.testing.assert_array_equal(*values)
    answers = [
        [item.answer for item in answer_questions(each, held_out[:1], 4, 6)]
        for each in (trained, model)
    ]
    assert answers[0] == answers[1]


def test_a_run_can_be_resumed_after_its_end(shapes_run, tmp_path):
    folder, *_ = shapes_run
    with pytest.raises(ValueError, match="nothing to resume"):
        run.run_training(micro_config(tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match="other settings: batch_size: 32, now 12"):
        run.run_training(micro_config(folder, batch_size=12), resume=True)
    with pytest.raises(ValueError, match="holds the checkpoints of a run. Resume it, restart it"):
        run.run_training(micro_config(folder))
    with pytest.raises(ValueError, match="would remove its model"):
        run.run_training(micro_config(folder, model=str(folder)), restart=True)
    with pytest.raises(ValueError, match="either resumed or restarted"):
        run.run_training(micro_config(folder), resume=True, restart=True)
    assert (folder / "config.json").read_text() == before


def test_what_a_run_learned_is_lost_by_a_restart_alone_and_then_as_a_whole(
    shapes_run, tmp_path, monkeypatch
):
    folder = shutil.copytree(shapes_run[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="holds the model of a run. Restart it, or choose"):
        run.run_training(micro_config(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    own = [folder / name for name in ("notes.txt", "pictures/mine.png", "train/notes.txt")]
    epoch, adapters = folder / "nanovlm_checkpoint_epoch_5.keras", folder / "old" / "adapters"
    adapters.mkdir(parents=True)
    for path in (*own, epoch, adapters / "adapter_config.json"):
        path.write_text("")
    settings = json.loads((folder / "config.json").read_text())
    stages = [*settings["stages"], {"name": "old"}]
    (folder / "config.json").write_text(json.dumps({**settings, "stages": stages}))

    def stopped(self, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.StageTrainer, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run_training(micro_config(folder, vocab_size=306), restart=True)
    kept = {"config.json", "log.jsonl", "preprocessor_config.json", "tensorboard", "versions.json"}
    names = {path.name for path in folder.iterdir()}
    tokenizer = {name for name in names if name.startswith(("tokenizer", "added_tokens"))}
    assert names - tokenizer == kept | {"notes.txt", "pictures", "train"}
    for name in ("pictures", "train"):
        assert [p for p in (folder / name).iterdir() if p not in own] == []
    assert all(path.is_file() for path in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "/nowhere"}, "nowhere"),
        ({"tokenizer": "other"}, "a SentencePieceTokenizer of 320 ids. Leave tokenizer out"),
        ({"template": "chatml"}, "'chatml' is another than the model .* brings: question_answer"),
        ({"image_processor": {"kind": "nvlm", "image_size": 48}}, "image_processor=.* is another"),
        ({"placeholder_tiles": "last"}, "placeholder_tiles='last' is another"),
        ({"tile_tags": True}, "tile_tags=True is another"),
    ],
)
def test_a_model_keeps_its_processor(changes, message, shapes_run, tmp_path):
    folder, *_ = shapes_run
    if changes.get("tokenizer") == "other":
        changes = {"tokenizer": str(tmp_path / "other")}
        write_tokenizer(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        run.run_training(micro_config(tmp_path / "run", model=str(folder), **changes))
    assert not (tmp_path / "run").exists()


def test_a_model_is_loaded_in_the_precision_that_is_asked_for(shapes_run, tmp_path):
    folder, *_ = shapes_run
    same = {"template": "question_answer", "tokenizer": str(folder), "vocab_size": 4000}
    trained, _ = load_checkpoint(folder)
    for precision, name in (("auto", "float32"), ("mixed_bfloat16", "mixed_bfloat16")):
        config = micro_config(tmp_path, model=str(folder), precision=precision, **same)
        model = new_model(config)
        assert new_processor(config, [], model) is model.processor
        for layer in (model, model.language_decoder.blocks[0].attention):
            assert layer.dtype_policy.name == name
        for expected, found in zip(trained.weights, model.weights, strict=True):
            values = [keras.ops.convert_to_numpy(v.value) for v in (expected, found)]
            np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, r"Unknown settings \['colour'\]"),
        ({"model": "nanovlm_3b"}, "Unknown model 'nanovlm_3b': choose from .*nanovlm_mini"),
        ({"vision_config": None}, "model='custom' needs a dict for each of"),
        ({"projection_config": {"input_dim": 16, "output_dim": 24}}, "hidden_dim=16"),
        ({"learning_rates": {"vision": 1e-3, "text": 1e-3}}, "'text' matches no weight"),
        ({"unfreeze_last_blocks": {"language": 9}}, "it covers 1 blocks"),
        ({"stages": [{"name": "a", "seed": 1}]}, r"Stage 'a' cannot have \['seed'\]"),
        ({"stages": [{"steps": 1}]}, "must be a dict with a name"),
        ({"stages": [{"name": "a", "clipnorm": "1"}]}, "clipnorm must be of type float"),
        ({"mixture": "all"}, "say how many steps"),
        ({"mixture": "vision", "steps": 3}, "Unknown mixture 'vision'"),
        ({"schedule": "cosin"}, "needs a type of"),
        ({"learning_rates": 1e-3}, "learning_rates must be of type dict"),
        ({"optimizer": {"type": "adamwx"}}, "optimizer type 'adamwx'"),
        ({"optimizer": {"type": "adamw", "beta": 0.9}}, r"Unknown keys \['beta'\]"),
        ({"augment": ["rotate"]}, r"Unknown augment \['rotate'\]: choose from \['crop', 'flip'\]"),
        ({"epochs": "three"}, "epochs must be of type int, got 'three'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"held_out_questions": 0}, "held_out_questions must be at least 1"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"max_turns": "all"}, "max_turns must be of type int, got 'all'"),
        ({"alpha": -1.0}, "'alpha' must be >= 0.0"),
        ({"precision": "float12"}, "float12"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_computed(
    changes, message, tmp_path, monkeypatch
):
    def never(config):
        raise AssertionError("The data was read.")

    monkeypatch.setattr(run, "load_data", never)
    with pytest.raises(ValueError, match=message):
        run.run_training(micro_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.no_backend
def test_epochs_are_counted_in_the_batches_of_the_stages_own_updates(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(run, "save_model", lambda model, path: saved.append(path.name))
    stage = align(steps=6, accumulation_steps=2, data=EpochStream(range(4)))
    config = micro_config(tmp_path, save_every_epochs=2, accumulation_steps=1)
    write = run._epoch_files(config, [stage], tmp_path)
    for step in range(1, 7):
        write(step, None)
        assert saved == ["nanovlm_checkpoint_epoch_2.keras"] * (step >= 4)


def test_recipes_are_complete_and_their_own(tmp_path):
    for name in RECIPES:
        check_config(get_recipe(name))
    get_recipe("demo")["vision_config"]["depth"] = 99
    assert get_recipe("demo")["vision_config"]["depth"] != 99
    with pytest.raises(ValueError, match="Unknown recipe 'dem': choose from"):
        get_recipe("dem")
    incomplete = get_recipe("demo")
    del incomplete["seed"]
    with pytest.raises(ValueError, match=r"missing settings \['seed'\]"):
        check_config(incomplete)


def colour_picture(k):
    return Image.new("RGB", (24, 24), [("red"), ("green"), ("blue")][k % 3]).resize((24, 20 + k))


def write_jsonl(folder):
    """Ten pictures: two questions about each, one of them with a choice of answers; one broken."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for k in range(10):
        colour_picture(k).save(folder / "images" / f"{k}.png")
        name = ("red", "green", "blue")[k % 3]
        rows.append({"image": f"{k}.png", "question": "What colour is it?", "answer": name})
        rows.append({"image": f"{k}.png", "question": "Is it red?", "answers": ["no", "never"]})
    rows.append({"question": "Is there no picture?", "answer": "right", "id": "text-only"})
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "train.jsonl").write_text(text)
    return folder


def write_parquet(folder):
    import pyarrow
    import pyarrow.parquet as parquet

    folder.mkdir()
    rows = []
    for k in range(10):
        colour_picture(k).save(folder / "one.png")
        stored = {"bytes": (folder / "one.png").read_bytes(), "path": None}
        texts = [{"user": "What colour is it?", "assistant": "blue", "source": "toy"}]
        rows.append({"images": [stored], "texts": texts})
    (folder / "one.png").unlink()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part-0.parquet")
    return folder


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_runs_on_files(write, tmp_path):
    data = write(tmp_path / "data")
    config = micro_config(tmp_path / "run", data=str(data), held_out_share=0.4, batch_size=3)
    results = run.run_training(config | {"augment": ["flip", "crop"]})
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    questions = {write_jsonl: (8, 9), write_parquet: (4,)}[write]
    assert results["all"]["questions"] in questions
    train, held_out = run.load_data(config)
    hashes = [{_pixels(s["images"]) for s in side if s["images"]} for side in (train, held_out)]
    assert len(hashes[0]) + len(hashes[1]) == 10
    assert not hashes[0] & hashes[1]


def _pixels(images):
    return base64.b64encode(load_image(images[0]).tobytes())


def test_bad_held_out_rows_are_found_before_the_training(tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "data")
    config = micro_config(tmp_path / "run", data=str(data), held_out_share=0.4)
    train, held_out = run.load_data(config)
    broken = next(sample for sample in held_out if sample["images"])
    with open(broken["images"][0], "rb+") as file:
        file.truncate(60)
    # Pictures are split by content, so the broken one may now lie on the other side.
    monkeypatch.setattr(run, "load_data", lambda config: (train, held_out))
    monkeypatch.setattr(run, "StageTrainer", None)
    with pytest.raises(ValueError, match="(?s)more than max_bad_share.*truncated"):
        run.run_training(config)


@pytest.mark.parametrize("share", [0.0, 0.04])
def test_a_split_with_an_empty_side_is_refused(share, tmp_path):
    data = write_jsonl(tmp_path / "data")
    config = micro_config(tmp_path / "run", data=str(data), held_out_share=share)
    with pytest.raises(ValueError, match=f"held_out_share={share} splits the 11 pictures"):
        run.run_training(config)


def test_scores_are_taken_on_other_data_if_there_is_some(tmp_path):
    data = write_jsonl(tmp_path / "data")
    other = write_jsonl(tmp_path / "other")
    for source, pictures in ((str(data), 11), ("shapes", 24)):
        config = micro_config(tmp_path, data=source, evaluation_data=str(other))
        train, held_out = run.load_data(config)
        assert len(train) == pictures  # Of which none is held out.
        assert held_out[0]["images"] == [str(other / "images" / "0.png")]
        with pytest.raises(ValueError, match="nowhere"):
            run.load_data({**config, "evaluation_data": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("augment", [[], ["flip"]])
def test_stages_without_a_mixture_cut_pictures_and_have_their_own_length(augment, tmp_path):
    processor = chat_processor(image_processor=NVLMImageProcessor(image_size=16, max_num=4))
    config = micro_config(tmp_path, augment=augment, max_turns=None)
    samples = generate_shapes("train", 3, 0, 32)
    longest = []
    for length in (300, 200):
        settings = {**config, "name": "a", "max_text_length": length}
        data, *_ = stage_data(settings, processor, samples)
        longest.append(max(len(row.tokens()[0]) for row in data.dataset.rows))
        assert data.dataset[0][0]["num_images"].max() == 5
    assert longest[1] <= 200 < longest[0] <= 300


def test_automatic_precision_is_that_of_the_device():
    tensor = keras.ops.ones(())
    device = str(getattr(tensor, "device", "")).lower()
    on_gpu = "gpu" in device or "cuda" in device
    assert run.precision_policy("auto") == ("mixed_float16" if on_gpu else "float32")
    assert run.precision_policy("bfloat16") == "bfloat16"


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no checkpoint folder: .*nanovlm_final.keras"):
        load_checkpoint(tmp_path)


def test_shapes_are_asked_in_full(tmp_path):
    config = micro_config(tmp_path, held_out_questions=40)
    _, held_out = run.load_data(config)
    pictures = generate_shapes("heldout", 10, config["seed"], config["picture_size"])
    assert sum(len(sample["kinds"]) for sample in held_out) >= 40
    assert [sample["id"] for sample in held_out] == [
        pictures[i]["id"] for i in range(len(held_out))
    ]


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def mixed_data(tmp_path_factory):
    """A folder with two sources, and one with questions to be scored on."""
    folder = tmp_path_factory.mktemp("mixed")
    write_jsonl(folder / "sources" / "colours")
    texts = [f"The {word} is {k}." for k, word in enumerate(["sky", "sea", "sun", "soil"] * 5)]
    (folder / "sources" / "texts.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "id": f"t{k}"}) for k, text in enumerate(texts))
    )
    return folder


def mixed_config(folder, data, **changes):
    """Return two stages on a mixture: the projection to the data's end, then adapters."""
    stages = [
        {
            "name": "align",
            "steps": 90,
            "max_epochs": 0.3,  # These have three batches.
            "learning_rates": {"projection": 1e-2},
        },
        {
            "name": "tune",
            "steps": 4,
            "lora": {"rank": 2},
            "learning_rates": {"lora_kernel_[ab]": 1e-2, "modality_projection": 1e-3},
            "accumulation_steps": 2,
            "ema_decay": 0.9,
        },
    ]
    settings = {
        "data": str(data / "sources"),
        "mixture": {"colours": 0.5, "texts": 0.5},
        "evaluation_data": str(data / "sources" / "colours"),
        "tokenizer": str(data / "tokenizer"),
        "max_text_length": 64,
        "max_turns": None,
        "max_tiles": 2,
        "batch_size": 2,
        "optimizer": {"type": "adamw"},
        "evaluate_every": 2,
        "evaluation_questions": 4,
        "stages": stages,
    }
    return micro_config(folder, **{**settings, **changes})


def write_tokenizer(folder):
    from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer

    texts = ["What colour is it? Is it red? no red green blue Question: Answer: The sky is 12."]
    SentencePieceTokenizer.train(texts * 4, 300).save(folder)


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory, mixed_data):
    write_tokenizer(mixed_data / "tokenizer")
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    return folder, run.run_training(mixed_config(folder, mixed_data))


def test_stages_run_on_a_mixture(mixed_run):
    folder, results = mixed_run
    rows = read_log(folder)
    steps = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 8))
    assert [row["step"] for row in rows if "evaluation/exact_match" in row] == [2, 3, 4, 6, 7]
    rates = [
        {k.split("/", 1)[1] for k in row if k.startswith("learning_rate/")} for row in steps[2:4]
    ]
    assert rates == [{"modality_projection"}, {"lora_kernel_[ab]", "modality_projection"}]
    assert steps[2]["learning_rate/modality_projection"] == pytest.approx(1e-2 * 0.02)
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step_{step:06d}.png" for step in (2, 3, 4, 6, 7)
    }
    assert (folder / "align" / "model.keras").is_file()
    assert (folder / "tune" / "adapters" / "adapter_config.json").is_file()
    assert 0 <= results["all"]["exact_match"] <= 1


def test_patterns_are_shown_as_they_are(capsys):
    report = ProgressReport(1, 0, 1)
    report.step(
        {
            **{"step": 1, "epoch": 1, "loss": 2.0, "accuracy": 0.5, "tokens_per_second": 9.0},
            "learning_rates": {"lora_kernel_[ab]": 0.1},
        }
    )
    assert "lr lora_kernel_[ab]=0.1" in capsys.readouterr().out


def test_losses_are_told_per_source(mixed_run):
    steps = [row for row in read_log(mixed_run[0]) if "train/loss" in row]
    names = {key for row in steps for key in row if key.startswith("train/source/")}
    assert names == {"train/source/colours", "train/source/texts"}


def test_a_stage_with_adapters_can_be_resumed(mixed_run, mixed_data, tmp_path):
    whole, _ = mixed_run
    config = mixed_config(tmp_path / "run", mixed_data)
    with pytest.MonkeyPatch.context() as patch:
        trainer = run.StageTrainer

        def stopped(*args, **kwargs):
            def stop(step, model):
                if step == 5:
                    raise InterruptedError

            return trainer(*args, **{**kwargs, "on_step": stop})

        patch.setattr(run, "StageTrainer", stopped)
        with pytest.raises(InterruptedError):
            run.run_training(config)
    run.run_training(config, resume=True)
    drop = ("speed/",)
    first, second = (
        [{k: v for k, v in row.items() if not k.startswith(drop)} for row in read_log(folder)]
        for folder in (whole, tmp_path / "run")
    )
    assert first == second


def test_a_run_starts_again_from_its_config_and_says_so(shapes_run, tmp_path, capsys):
    from dl_techniques.cli_training import train_command

    folder, results, _ = shapes_run
    flags = ["--config", str(folder / "config.json"), "--output_dir", str(tmp_path / "again")]
    train_command(flags, get_recipe)
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results
    losses = [[row["train/loss"] for row in read_log(f)] for f in (folder, tmp_path / "again")]
    assert losses[0] == losses[1]
    train_command([*flags, "--restart"], get_recipe)
    assert len(read_log(tmp_path / "again")) == len(losses[0])
    with pytest.raises(ValueError, match="not valid JSON"):
        train_command(["--config", str(folder / "loss_curve.png")], get_recipe)


@pytest.mark.parametrize(
    ("mixture", "unit"), [({"colours": 0.5, "texts": 0.5}, "answer_tokens"), ("all", "rows")]
)
def test_shares_are_of_tokens_and_all_sources_go_by_their_rows(
    mixture, unit, mixed_run, mixed_data, tmp_path
):
    processor = VQADataProcessor.load(mixed_run[0])
    config = mixed_config(tmp_path, mixed_data, mixture=mixture, steps=7, max_documents=1)
    data, *steps = stage_data({**config, "name": "a"}, processor, [])
    assert (data.mixture.unit, steps, data.settings.max_documents) == (unit, [7, 7], 1)
    assert set(data.sources) == {"colours", "texts"}
