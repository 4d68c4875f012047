"""Measured training steps: their processes, tables, limits, and mistakes."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
from command_line import check_one_line_error
from tiny_models import tiny_config

from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.training import bench, bench_worker
from dl_techniques.training.bench import BenchSettings
from dl_techniques.training.bench_steps import StepsToMeasure
from dl_techniques.training.device_peaks import PEAK_TFLOPS, peak_flops_per_second
from dl_techniques.training.plan import plan_training
from dl_techniques.utils import resident_memory


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A file of the tiny model's sizes; processes share the tests' cache of compiled programs."""
    cache = pathlib.Path(__file__).parents[2] / ".jax_cache"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config()))
    return path


def test_bench_train_measures_and_writes_json(command, tiny, tmp_path):
    file = tmp_path / "points.json"
    options = ["--length", 16, "--steps", 2, "--peak-tflops", 1e-6, "--json", file]
    code, out, err = command("bench", "train", tiny, "--batch-sizes", "2", *options)
    assert (code, err) == (0, "")
    (point,) = json.loads(file.read_text())["points"]
    plan = plan_training(tiny_config(), 2, 16)
    assert point["flops"] == plan.flops and point["tokens"] == 32
    # Rows of 16 ids, 4 of them the image's, whose first one would have no logit before it.
    assert point["learned_tokens_per_second"] * point["step_seconds"] == pytest.approx(24)
    assert point["tokens_per_second"] * point["step_seconds"] == pytest.approx(32)
    assert point["mfu"] == pytest.approx(plan.flops / point["step_seconds"] / 1e6)
    assert point["first_seconds"] > 0 and point["peak"] > plan.weights
    assert point["backend"] == keras.backend.backend()
    header, row, written = out.splitlines()
    assert header.split()[:2] == ["batch", "step"] and row.split()[0] == "2"
    assert written == f"{file} written."


def test_bench_memory_stops_where_memory_ends(command, tiny, monkeypatch, tmp_path):
    asked = []
    measure = bench.measure

    def limited(settings, limit_gb):
        asked.append(settings.batch_size)
        return measure(settings, limit_gb if settings.batch_size == 2 else 0.05)

    monkeypatch.setattr(bench, "measure", limited)
    file = tmp_path / "points.json"
    options = ["--batch-sizes", "8,2,4", "--length", 16, "--json", file]
    code, out, err = command("bench", "memory", tiny, *options)
    assert (code, err) == (0, "")
    assert asked == [2, 4]
    fits, does_not = json.loads(file.read_text())["points"]
    plan = plan_training(tiny_config(), 2, 16)
    assert fits["planned"] == plan.peak and fits["source"]
    assert plan.weights + plan.optimizer <= fits["peak"] < plan.peak + 100e6
    assert does_not["out_of_memory"] and not fits["out_of_memory"]
    _, first, last, _ = out.splitlines()
    assert first.split()[0] == "2"
    assert last.split()[:4] == ["4", "out", "of", "memory"]


def test_the_model_is_compiled_as_the_settings_say(tiny):
    settings = BenchSettings(
        "memory",
        str(tiny),
        2,
        16,
        images=2,
        optimizer="adafactor",
        chunk_size=8,
        remat=True,
        trainable=["language_decoder"],
    )
    steps = StepsToMeasure(settings)
    model = steps.model
    assert isinstance(model, NanoVLM) and model.loss.chunk_size == 8
    assert model.language_decoder.remat and model.vision_encoder.remat
    trained = {v.path.split("/")[-4] for v in model.trainable_variables if "q_proj" in v.path}
    assert trained == {"block_0", "block_1"}
    assert not model.vision_encoder.trainable_variables
    ids, labels = steps.inputs["text_tokens"], steps.labels
    assert steps.inputs["images"].shape == (2, 2, 16, 16, 3)
    np.testing.assert_array_equal(labels == -100, ids == model.image_token_id)
    assert np.sum(labels == -100) == 2 * 2 * 4
    assert steps.learned_tokens == 2 * (16 - 2 * 4)
    model.batch_checks.check(steps.inputs, labels)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--batch-sizes", "0,1"], "at least 1, got [0, 1]"),
        (["--batch-sizes", "many"], "whole numbers as 1,8,16, got 'many'"),
    ],
)
def test_wrong_batch_sizes_are_one_line(command, arguments, part):
    code, out, err = command("bench", "memory", "demo", *arguments)
    check_one_line_error((code, "", err), part)


def test_what_a_process_refuses_is_told_as_if_here():
    with pytest.raises(ValueError, match="Unknown model 'nanovlm_1t'"):
        bench.measure(BenchSettings("memory", "nanovlm_1t"))


def test_a_process_that_fails_is_no_end_of_memory(monkeypatch):
    monkeypatch.setattr(bench, "_WORKER", "dl_techniques.no_such_worker")
    with pytest.raises(RuntimeError, match="no_such_worker"):
        bench.measure(BenchSettings("memory", "demo"))


def test_a_backend_that_runs_out_of_memory_is_caught(tmp_path, monkeypatch):
    def fails(settings):
        yield {"planned": 1}
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(bench_worker, "_points", fails)
    monkeypatch.setattr(bench_worker, "_prepare_process", lambda settings: None)
    settings = BenchSettings("memory", "demo")
    bench_worker.main(settings, tmp_path / "results")
    lines = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert lines == [{"planned": 1}, {"out_of_memory": True}]


def test_settings_pass_through_json():
    settings = BenchSettings("train", "demo", trainable=["language_decoder"], remat=True)
    assert BenchSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_resident_memory_has_a_peak_that_can_be_forgotten():
    array = np.ones(30_000_000, "float32")
    now = resident_memory.resident_bytes()  # First, as it may grow between the two.
    high = resident_memory.peak_resident_bytes()
    assert high >= now > array.nbytes
    del array
    assert resident_memory.reset_peak()
    assert resident_memory.peak_resident_bytes() < high - 60_000_000
    assert resident_memory.available_bytes() > 0
    assert resident_memory.resident_bytes(999_999_999) == 0


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("cpu", None),
        ("NVIDIA A1000", None),
    ],
)
def test_a_device_is_found_by_its_name(monkeypatch, name, listed):
    monkeypatch.setattr("dl_techniques.training.device_peaks.device_name", lambda: name)
    half, single = PEAK_TFLOPS.get(listed, (None, None))
    assert peak_flops_per_second("mixed_bfloat16") == (half and half * 1e12)
    assert peak_flops_per_second("float32") == (single and single * 1e12)


def test_this_device_has_no_listed_peak_or_one_above_zero():
    peak = peak_flops_per_second()
    assert peak is None or peak > 1e12
