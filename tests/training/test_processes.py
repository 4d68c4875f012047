"""Rows, values and start of several processes, as far as one process can tell."""

import keras
import numpy as np
import pytest
from tiny_models import IMAGE_ID, logits, mixed_batch, place_images, random_ids, tiny_nanovlm
from toy_runs import ToyData, micro_nanovlm, next_token_sums

from dl_techniques.training.local_rows import LocalRows, data_shard, local_rows, pad_rows
from dl_techniques.training.path_distribution import PathDistribution
from dl_techniques.training.processes import (
    any_process,
    assign_full,
    full_value,
    initialize_processes,
    is_main_process,
    own_copy,
    slurm_processes,
    whole_weights,
)

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_rows_without_labels_change_neither_loss_nor_the_other_rows():
    model, batch = tiny_nanovlm(), mixed_batch()
    labels = np.where(batch["attention_mask"], batch["text_tokens"], -100)
    labels = np.where(batch["text_tokens"] == IMAGE_ID, -100, labels)
    padded, padded_labels = pad_rows((batch, labels), 4)
    assert {len(array) for array in (*padded.values(), padded_labels)} == {4}
    assert (padded_labels[3] == -100).all() and padded["num_images"][3] == 0
    model.batch_checks.check(padded, padded_labels)
    found, expected = logits(model, padded), logits(model, batch)
    real = batch["attention_mask"]
    np.testing.assert_allclose(found[:3][real], expected[real], rtol=0, atol=1e-5)
    assert np.isfinite(found).all()
    sums = [next_token_sums(x, y) for x, y in ((found, padded_labels), (expected, labels))]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


def test_padded_batches_have_the_keys_of_whole_ones():
    ids = place_images(random_ids(4, 12), [(i, 0) for i in range(4)])
    inputs = {"images": np.zeros((4, 16, 16, 3), "float32"), "text_tokens": ids}
    whole, short = (pad_rows((inputs, ids), multiple)[0] for multiple in (4, 3))
    assert whole.keys() == short.keys() == {"images", "text_tokens", "num_images"}
    assert whole["num_images"].tolist() == [1] * 4
    assert short["num_images"].tolist() == [1] * 4 + [0] * 2
    assert pad_rows(ids, 8).shape == (8, 12)
    slots = pad_rows({"images": np.zeros((1, 3, 16, 16, 3)), "text_tokens": ids[:1]}, 2)
    assert slots["num_images"].tolist() == [3, 0]
    with pytest.raises(ValueError, match="got 3 parts"):
        pad_rows((inputs, ids, ids), 4)


def in_process(number, processes=2, data=4, model=1):
    """Return the distribution that one of several processes sees."""
    names = [f"cpu:{i}" for i in range(data * model)]
    mesh = keras.distribution.DeviceMesh((data, model), ("data", "model"), names)
    distribution = PathDistribution(mesh, shard_over_data=True, rules=None)
    # Keras asks the backend for these.
    distribution._process_id, distribution._num_processes = number, processes
    return distribution


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_gets_its_rows(process):
    inputs, labels = ToyData(rows=6).rows(np.arange(6))
    with in_process(process).scope():
        assert data_shard() == (process, 2)
        found, found_labels = local_rows((inputs, labels))
    expected, expected_labels = pad_rows((inputs, labels), 8)
    rows = slice(4 * process, 4 * process + 4)
    np.testing.assert_array_equal(found_labels, expected_labels[rows])
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array[rows])


def test_processes_of_one_tensor_parallel_group_get_the_same_rows():
    parts = [data_shard(in_process(i, processes=4, data=2, model=4)) for i in range(4)]
    assert parts == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_data_sets_are_read_in_parts():
    class Data(ToyData):
        begun = 0

        def on_epoch_begin(self):
            self.begun += 1

    data = Data(batch_size=3, rows=6, shuffle=False)
    rows = LocalRows(data)
    assert len(rows) == rows.num_batches == 2
    rows.on_epoch_begin()
    assert data.begun == 1
    assert local_rows(data[0])[0].keys() == data[0][0].keys()  # No distribution is in force.
    with in_process(1).scope():
        inputs, labels = rows[1]
    np.testing.assert_array_equal(labels[0], data[1][1][2])
    assert (labels[1] == -100).all() and inputs["num_images"].tolist() == [1, 0]


def test_values_are_whole_in_one_process():
    model = micro_nanovlm()
    variable = model.language_decoder.token_embedding.embeddings
    value = np.random.default_rng(0).standard_normal(variable.shape).astype("float32")
    assign_full(variable, value)
    np.testing.assert_array_equal(full_value(variable), value)
    with whole_weights(model), own_copy(model):
        np.testing.assert_array_equal(full_value(variable), value)
    assert is_main_process()
    assert any_process(True) and not any_process(False)


def test_slurm_says_who_is_who():
    assert slurm_processes(SLURM) == ("gpu07:61441", 3, 2, None)
    two_tasks_a_node = {"SLURM_NTASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    assert slurm_processes(SLURM | two_tasks_a_node) == ("gpu07:61441", 6, 5, [1])


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,other[2-3]", "node1"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015]", "node001"),
        ("rack2-node[3-4].cluster", "rack2-node3.cluster"),
    ],
)
def test_the_first_host_of_slurms_list(hosts, first):
    coordinator, *_ = slurm_processes(SLURM | {"SLURM_STEP_NODELIST": hosts})
    assert coordinator == f"{first}:61441"


def test_outside_of_slurm_the_numbers_are_needed(monkeypatch):
    with pytest.raises(ValueError, match="lacks SLURM_NTASKS, SLURM_PROCID"):
        slurm_processes({k: v for k, v in SLURM.items() if k[6:] not in ("NTASKS", "PROCID")})
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="go together: .*'localhost:1', None, 0"):
            initialize_processes("localhost:1", process_id=0)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        with pytest.raises(ValueError, match="start with srun in a Slurm job"):
            initialize_processes()
