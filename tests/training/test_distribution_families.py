"""GhostVis and NVLM-X on eight devices train as on one; see `families_worker.py`."""

import json
import pathlib

import pytest
from only_on import only_on
from test_distribution import check_close, finish, start

# One process makes what all its tests share.
pytestmark = pytest.mark.xdist_group("distribution_families")

WORKER = pathlib.Path(__file__).with_name("families_worker.py")
CASES = ("ghostvis", "nvlm_x")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("families") / "found.json"
    finish([start(file, devices=8, worker=WORKER)])
    return json.loads(file.read_text())


@only_on("jax")
@pytest.mark.parametrize("layout", ["fsdp", "tensor"])
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_give_the_losses_of_one(case, layout, found):
    losses = found[case]["single"]["losses"]
    assert losses[2] < losses[0] - 0.01 and losses[3] < losses[1] - 0.01
    check_close(found[case][layout]["losses"], losses)


@only_on("jax")
def test_new_layers_are_split_by_heads_and_hidden_units(found):
    ghostvis, nvlm = (found[case]["tensor"]["specs"] for case in CASES)
    projection, cross = "modality_projection/", "language_decoder/block_1/cross_attention/"
    expected = {
        projection + "vision_resampler/queries": ["None", "None"],
        projection + "vision_resampler/block_1/attention/q_proj/kernel": ["None", "model"],
        projection + "vision_resampler/block_1/attention/o_proj/kernel": ["model", "None"],
        projection + "vision_resampler/block_1/mlp/fc1/kernel": ["None", "model"],
        projection + "vision_projector/fc1/kernel": ["None", "model"],
        projection + "vision_projector/fc2/kernel": ["model", "None"],
    }
    assert {path: ghostvis[path] for path in expected} == expected
    expected = {
        cross + "attention/q_proj/kernel": ["None", "model"],
        cross + "attention/k_proj/kernel": ["None", "model"],
        cross + "attention/o_proj/kernel": ["model", "None"],
        cross + "gate": ["None"],
    }
    assert {path: nvlm[path] for path in expected} == expected
    sharded = found["nvlm_x"]["fsdp"]["specs"]
    assert sharded[cross + "attention/v_proj/kernel"] == ["data", "None"]
