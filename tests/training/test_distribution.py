"""Training on several devices gives what one device gives, and each device holds its part.

What needs more than one device runs in processes of its own: see `distribution_worker.py`.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from only_on import only_on
from safetensors.numpy import load_file

from dl_techniques.models.nano_vlm import NanoVLM

# One process makes what all its tests share.
pytestmark = pytest.mark.xdist_group("distribution")

WORKER = pathlib.Path(__file__).with_name("distribution_worker.py")
LAYOUTS = ("data", "fsdp", "tensor", "fsdp+tensor")


def start(*arguments, devices=1, worker=WORKER):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, worker, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=1800)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distribution")


@pytest.fixture(scope="module")
def layouts(folder):
    """What one process with eight devices found."""
    finish([start("layouts", folder, devices=8)])
    return json.loads((folder / "layouts.json").read_text())


@pytest.fixture(scope="module")
def processes(folder, layouts):
    """What two processes with two devices each found, who went on where the eight devices were."""
    port = free_port()
    finish([start("processes", folder, i, 2, port, devices=2) for i in range(2)])
    return [json.loads((folder / f"processes_{i}.json").read_text()) for i in range(2)]


@pytest.fixture(scope="module")
def mirrored(folder):
    """What TensorFlow found on one device and on two replicas."""
    finish([start("mirrored", folder)])
    return json.loads((folder / "mirrored.json").read_text())


def check_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@only_on("jax")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_give_the_losses_of_one(layout, layouts):
    losses = layouts["single"]["losses"]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.5
    check_close(layouts[layout]["losses"], losses)


@only_on("jax")
@pytest.mark.parametrize(("layout", "parts"), [("data", 1), ("fsdp", 8)])
def test_each_device_holds_its_part_of_weights_and_optimizer_state(layout, parts, layouts):
    held = layouts[layout]["held"]
    assert sorted(held["devices"]) == [f"cpu:{i}" for i in range(8)]
    for kind, size in held["sizes"].items():
        vectors = size["all"] - size["matrices"]
        assert vectors < 0.05 * size["all"]
        expected = vectors + size["matrices"] / parts
        assert {device[kind] for device in held["devices"].values()} == {expected}


@only_on("jax")
def test_each_device_holds_its_part_of_frozen_weights(layouts):
    frozen, trained = (layouts["fsdp"][name]["devices"] for name in ("held_frozen", "held"))
    for device, found in frozen.items():
        assert found["weights"] == trained[device]["weights"]
        assert found["optimizer"] < 0.1 * trained[device]["optimizer"]


@only_on("jax")
def test_devices_of_a_tensor_parallel_group_share_matrices_by_heads_and_hidden_units(layouts):
    found = layouts["tensor"]["specs"]
    block = "language_decoder/block_0/"
    expected = {
        # 4 heads go on 4 devices, 2 key-value heads do not.
        block + "attention/q_proj/kernel": ["None", "model"],
        block + "attention/k_proj/kernel": ["None", "None"],
        block + "attention/v_proj/kernel": ["None", "None"],
        block + "attention/o_proj/kernel": ["model", "None"],
        block + "mlp/gate_proj/kernel": ["None", "model"],
        block + "mlp/up_proj/kernel": ["None", "model"],
        block + "mlp/down_proj/kernel": ["model", "None"],
        block + "input_norm/scale": ["None"],
        "language_decoder/token_embedding/embeddings": ["model", "None"],
        "modality_projection/proj/kernel": ["model", "None"],
        "vision_encoder/block_0/attention/k_proj/kernel": ["None", "model"],
        "vision_encoder/block_0/attention/k_proj/bias": ["None"],
        "vision_encoder/block_0/mlp/fc1/kernel": ["None", "model"],
        "vision_encoder/block_0/mlp/fc2/kernel": ["model", "None"],
        "vision_encoder/patch_embedding/patch_projection/kernel": ["None", "None"],
    }
    assert {path: found[path] for path in expected} == expected
    both = layouts["fsdp+tensor"]["specs"]
    assert both[block + "attention/k_proj/kernel"] == ["data", "model"]
    assert both[block + "mlp/down_proj/kernel"] == ["model", "data"]


@only_on("jax")
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_channels_of_the_token_stream_stay_whole(layout, layouts):
    assert set(layouts[layout]["constrained"]) == {
        f"{path}/output"
        for path in (
            "vision_encoder/patch_embedding/patch_projection",
            "vision_encoder/block_0/attention/o_proj",
            "vision_encoder/block_0/mlp/fc2",
            "modality_projection/pixel_shuffle",
            "modality_projection/proj",
            "language_decoder/block_0/attention/o_proj",
            "language_decoder/block_0/mlp/down_proj",
        )
    }


@only_on("jax")
def test_a_stopped_run_goes_on_with_another_number_of_devices(layouts, processes, folder):
    losses = layouts["single"]["losses"][10:]
    check_close(layouts["single"]["resumed"], losses)
    for process in processes:
        check_close(process["losses"], losses)
    expected = load_file(folder / "fsdp_end.safetensors")
    for name, value in load_file(folder / "processes_end.safetensors").items():
        check_close(value, expected[name])


@only_on("jax")
def test_two_processes_are_one_run(processes, folder):
    assert processes[0]["losses"] == processes[1]["losses"]
    assert processes[0]["after"] == processes[1]["after"]
    assert [process["rows"] for process in processes] == [4, 4]
    assert [process["main"] for process in processes] == [True, False]
    assert [process["stop"] for process in processes] == [[True, False]] * 2
    assert [process["assigned"] for process in processes] == [True, True]
    devices = [process["held"]["devices"] for process in processes]
    assert len(devices[0]) == len(devices[1]) == 2 and not set(devices[0]) & set(devices[1])
    for held in devices:
        size = processes[0]["held"]["sizes"]["weights"]
        expected = size["all"] - size["matrices"] + size["matrices"] / 4
        assert {device["weights"] for device in held.values()} == {expected}


@only_on("jax")
def test_split_weights_are_saved_whole(processes, folder):
    path = folder / "processes.keras"
    model = keras.saving.load_model(path, {"NanoVLM": NanoVLM}, compile=False)
    saved = load_file(folder / "processes_end.safetensors")
    for i, variable in enumerate(model.variables):
        found = keras.ops.convert_to_numpy(variable.value)
        np.testing.assert_array_equal(found, saved[f"{i:04d}"])


@only_on("jax")
def test_batches_that_do_not_divide_are_filled_up_or_refused(layouts):
    check_close(layouts["data"]["short"], layouts["single"]["short"])
    assert layouts["data"]["fit"] == 0.0
    assert "A batch of 3 rows does not divide over 8 devices" in layouts["data"]["error"]


@only_on("jax")
@pytest.mark.parametrize("loss", ["ContrastiveLoss", "SigmoidContrastiveLoss"])
def test_contrastive_losses_see_the_rows_of_all_devices(loss, layouts):
    found = layouts[loss]
    assert found["single"][-1] < found["single"][0] - 0.1
    check_close(found["data"], found["single"])


@only_on("tensorflow")
def test_two_replicas_give_the_losses_of_one_device(mirrored):
    one, two = mirrored["one"], mirrored["two"]
    assert mirrored["replicas"] == 2
    assert len(one["losses"]) == 20 and one["losses"][-1] < one["losses"][0] - 0.5
    check_close(two["losses"], one["losses"])


@only_on("tensorflow")
@pytest.mark.parametrize("what", ["short", "fit", "evaluate"])
def test_two_replicas_share_batches_of_an_odd_number_of_rows(what, mirrored):
    check_close(mirrored["two"][what], mirrored["one"][what])


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [row["train/loss"] for row in read_log(folder) if "train/loss" in row]


@only_on("jax")
def test_a_whole_run_of_two_processes_is_that_of_one_and_goes_on_in_one(tmp_path):
    worker = WORKER.with_name("run_worker.py")
    together, port = tmp_path / "together", free_port()
    finish([start(together, i, 2, port, devices=2, worker=worker) for i in range(2)])
    losses = losses_of(together)
    rows = read_log(together)
    evaluated = [row["step"] for row in rows if "evaluation/exact_match" in row]
    assert evaluated == [3, 6, 9, len(losses)]
    results = json.loads((together / "results.json").read_text())
    latest, earlier, _best = sorted(together.glob("checkpoints/step_*"), reverse=True)
    shutil.rmtree(latest)
    finish([start(together, 0, 1, port, "resume", worker=worker)])
    assert losses_of(together)[: int(earlier.name[-9:])] == losses[: int(earlier.name[-9:])]
    # From here on these are the losses of one process, with the batches of two.
    check_close(losses_of(together), losses)
    alone = json.loads((together / "results.json").read_text())
    assert alone["all"]["questions"] == results["all"]["questions"] > 16
