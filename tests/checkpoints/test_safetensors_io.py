import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from corruption import corrupted
from safetensors.numpy import load_file, save_file
from test_loading import refused, tiny_decoder, values

from dl_techniques.checkpoints import Checkpoint, load_weights, save_weights
from dl_techniques.checkpoints.safetensors_writer import PendingTensor, write_folder


def pending(key, value):
    return PendingTensor(key, value.shape, value.dtype, lambda: value)


def test_every_dtype_goes_through_a_file_bit_for_bit(tmp_path):
    arrays = {
        np.dtype(dtype).name: np.arange(6).reshape(2, 3).astype(dtype)
        for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
    }
    arrays["bfloat16"] = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    arrays["scalar"] = np.float32(2.5).reshape(())
    arrays["empty"] = np.zeros((0, 4), "float32")
    arrays["transposed"] = np.arange(6, dtype="float32").reshape(2, 3).T
    write_folder(tmp_path, [pending(k, v) for k, v in arrays.items()], {"format": "pt"})
    theirs = load_file(tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
        assert set(checkpoint.keys()) == set(theirs) == set(arrays)
        for key, value in arrays.items():
            for read in (checkpoint.read(key), theirs[key]):
                assert (read.dtype, read.shape) == (value.dtype, value.shape)
                np.testing.assert_array_equal(read, value)
        assert checkpoint.read("float32", "bfloat16").dtype == ml_dtypes.bfloat16
        assert checkpoint.read("bfloat16", "float32").dtype == np.float32
        with pytest.raises(ValueError):
            checkpoint.view("float32")[0, 0] = 1


def test_reading_and_writing_hold_one_tensor_at_a_time(tmp_path):
    """What NumPy allocates on the way is less than two of the ten tensors."""
    size = 4 * 1000 * 100
    tensors = [
        PendingTensor(str(i), (1000, 100), np.dtype("float32"), lambda: np.ones((1000, 100), "f4"))
        for i in range(10)
    ]
    tracemalloc.start()
    write_folder(tmp_path, tensors)
    with Checkpoint(tmp_path) as checkpoint:
        for key in checkpoint.keys():
            assert checkpoint.read(key).sum() == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size <= peak < 1.5 * size


def test_shards(tmp_path):
    arrays = {str(i): np.full((10,), i, "float32") for i in range(5)}
    files = write_folder(tmp_path, [pending(k, v) for k, v in arrays.items()], None, 90)
    assert [f.name for f in files] == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads(files[-1].read_text())
    assert index["metadata"] == {"total_size": 200}
    with Checkpoint(tmp_path) as checkpoint:
        for key, value in arrays.items():
            np.testing.assert_array_equal(checkpoint.view(key), value)
            file = tmp_path / index["weight_map"][key]
            np.testing.assert_array_equal(load_file(file)[key], value)
    # One tensor may be larger than a shard; older weights in the folder are replaced.
    assert len(write_folder(tmp_path, [pending("a", arrays["1"])], None, 1)) == 1
    assert os.listdir(tmp_path) == ["model.safetensors"]
    write_folder(tmp_path, [pending(k, v) for k, v in arrays.items()], None, 90)
    assert sorted(os.listdir(tmp_path)) == [f.name for f in files]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    old = np.arange(3, dtype="float32")
    write_folder(tmp_path, [pending("a", old)])

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path, [pending("a", old + 1), PendingTensor("b", (1,), old.dtype, fail)])
    with pytest.raises(ValueError, match=r"'a' has shape \(3,\), not \(4,\)"):
        write_folder(tmp_path, [PendingTensor("a", (4,), old.dtype, lambda: old)])
    with pytest.raises(ValueError, match="same name"):
        write_folder(tmp_path, [pending("a", old), pending("a", old)])
    assert os.listdir(tmp_path) == ["model.safetensors"]
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["a"], old)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is a pickle.*save_file") as error:
            Checkpoint(source)
        assert "Convert it" in str(error.value)


def test_folders_that_are_incomplete_or_ambiguous(tmp_path):
    index = tmp_path / "model.safetensors.index.json"

    def refused_folder(message):
        with pytest.raises(ValueError, match=message):
            Checkpoint(tmp_path)

    refused_folder("holds no model.safetensors")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        Checkpoint(tmp_path / "nowhere")
    for content, message in (
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "b.bin"}}', "weight_map"),
        ('{"weight_map": {"a": "b.safetensors"}}', "not there.*b.safetensors"),
    ):
        index.write_text(content)
        refused_folder(message)
    save_file({"a": np.ones(1, "float32")}, tmp_path / "b.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.keys() == ["a"]
    save_file({"a": np.ones(1, "float32"), "c": np.ones(1)}, tmp_path / "b.safetensors")
    refused_folder("disagree about.*'c'")
    index.write_text('{"weight_map": {"a": "b.safetensors", "c": "d.safetensors"}}')
    save_file({"c": np.ones(1)}, tmp_path / "d.safetensors")
    refused_folder("both hold 'c'")
    save_file({"c": np.ones(1)}, tmp_path / "model.safetensors")
    refused_folder("holds both")


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path = tmp_path / "small.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with Checkpoint(path) as checkpoint:
        with pytest.raises(ValueError, match="small.safetensors: 'a' has .* F8_E4M3"):
            checkpoint.view("a")


def test_a_name_that_stands_twice(tmp_path):
    entry = b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
    header = b"{" + entry + b"," + entry + b"}"
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(ValueError, match="twice.safetensors.*twice in the header"):
        Checkpoint(path)


def test_a_hundred_damaged_files(tmp_path):
    """Each is refused by name, with little memory, and leaves the model as it was."""
    save_weights(tiny_decoder(1), tmp_path, "llama")
    data = (tmp_path / "model.safetensors").read_bytes()
    decoder = tiny_decoder()
    before = values(decoder)
    path = tmp_path / "damaged.safetensors"
    tracemalloc.start()
    for seed in range(105):
        kind, damaged = corrupted(data, seed)
        path.write_bytes(damaged)
        tracemalloc.reset_peak()
        try:
            load_weights(decoder, path, "llama")
        except ValueError as error:
            assert "damaged.safetensors" in str(error), (seed, kind)
        else:
            raise AssertionError(f"{kind} with seed {seed} was loaded")
        assert tracemalloc.get_traced_memory()[1] < len(damaged) + 100e6, (seed, kind)
    tracemalloc.stop()
    for name, value in values(decoder).items():
        np.testing.assert_array_equal(before[name], value)


def test_a_header_that_claims_much_is_not_believed(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="claims 1099511627776 bytes, the file has 10"):
        Checkpoint(path)
    path.write_bytes((5_000_000).to_bytes(8, "little") + b" " * 5_000_000)
    with pytest.raises(ValueError, match="a header of 5000000 bytes is not read"):
        Checkpoint(path)
    # Zero values, but a claim of 2^62 rows: the vocabulary would be extended from nothing.
    decoder = tiny_decoder()
    tensors = {"model.embed_tokens.weight": np.ones((0, 8), "float32")}
    refused(decoder, path, tensors, "0 token ids", extend_vocabulary=True)
