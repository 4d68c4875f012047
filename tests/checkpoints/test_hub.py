import fnmatch
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from tiny_presets import assert_same_weights, tiny_model

from dl_techniques.checkpoints import Checkpoint
from dl_techniques.checkpoints.hub import TOKENIZER_FILES, local_folder, repository_name
from dl_techniques.models.nano_vlm import NanoVLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's local cache, empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache, folder, name, revision="main"):
    """Put a folder into the cache as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)


def test_presets_come_from_the_cache_without_a_network(cache, tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    model.save_to_preset(tmp_path / "preset")
    put(cache, tmp_path / "preset", "someone/tiny", revision="v1")
    loaded = NanoVLM.from_preset("hf://someone/tiny", revision="v1")
    assert_same_weights(loaded, model)
    assert loaded.processor.get_config() == model.processor.get_config()
    with pytest.raises(ConnectionError, match="hf://someone/tiny is not in the local cache"):
        NanoVLM.from_preset("hf://someone/tiny", revision="v2")


def test_tokenizers_come_from_the_cache_too(cache, tmp_path):
    from dl_techniques.checkpoints import export_nanovlm

    model = tiny_model(tmp_path / "tokenizer")
    put(cache, tmp_path / "tokenizer", "someone/tokenizer")
    export_nanovlm(model, tmp_path / "nano", tokenizer="someone/tokenizer")
    loaded = NanoVLM.from_preset(tmp_path / "nano")
    assert loaded.processor.tokenizer.special_tokens == model.processor.tokenizer.special_tokens


def test_only_what_is_needed_is_asked_for(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert local_folder("hf://someone/tiny", "abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("someone/tiny", "abc")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    assert asked["ignore_patterns"] == ["*/*"]
    with pytest.raises(ValueError, match=r"config\.json"):
        NanoVLM.from_preset("hf://someone/tiny", load_weights=False)
    assert "*.safetensors" not in asked["allow_patterns"]


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"),
        *("merges.txt", "added_tokens.json", "special_tokens_map.json"),
    ],
)
def test_every_file_of_a_tokenizer_is_asked_for(monkeypatch, tmp_path, name):
    asked = []

    def download(repository, allow_patterns, **options):
        asked.append(allow_patterns)
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local_folder("hf://someone/tiny")
    local_folder("hf://someone/tiny", files=TOKENIZER_FILES)
    for patterns in asked:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    assert any(fnmatch.fnmatch("chat_template.jinja", pattern) for pattern in asked[0])


def hub_error(kind):
    """Return an error that the hub's answer raises."""
    error = kind.__new__(kind)  # Its constructor wants the answer itself.
    error.args = ("not here",)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (hub_error(errors.RepositoryNotFoundError), ValueError),
        (hub_error(errors.RevisionNotFoundError), ValueError),
        (errors.HTTPError("broken line"), ConnectionError),
        (errors.LocalEntryNotFoundError("no network"), ConnectionError),
        (errors.OfflineModeIsEnabled("offline"), ConnectionError),
        (OSError(28, "No space left on device"), OSError),
    ],
)
def test_errors_of_the_hub_are_one_clear_error(monkeypatch, error, expected):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(expected) as caught:
        local_folder("hf://someone/tiny")
    assert (caught.value is error) == (expected is OSError)


@pytest.mark.parametrize("name", ["hf://tiny", "hf://", "hf://a/b/c", "hf://a b/c", "someone/../x"])
def test_malformed_names_are_refused(name):
    with pytest.raises(ValueError, match="no name of a repository"):
        repository_name(name)


def test_push_to_hub(monkeypatch, tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    calls = []

    class Api:
        endpoint = "https://hub"

        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, repo_id, folder_path, **options):
            calls.append(repo_id)
            shutil.copytree(folder_path, tmp_path / "uploaded")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("someone/tiny", private=True) == "https://hub/someone/tiny"
    assert calls == [("someone/tiny", {"private": True, "exist_ok": True}), "someone/tiny"]
    assert_same_weights(NanoVLM.from_preset(tmp_path / "uploaded"), model)
    assert "## Training data" in (tmp_path / "uploaded/README.md").read_text()


def test_push_to_hub_takes_a_dtype_and_says_what_the_hub_refuses(monkeypatch, tmp_path):
    model = tiny_model(tmp_path / "tokenizer")

    class Api:
        endpoint = "https://hub"

        def create_repo(self, name, **options):
            assert options["private"] is None

        def upload_folder(self, repo_id, folder_path, **options):
            if repo_id == "another/tiny":
                raise hub_error(errors.HfHubHTTPError)
            with Checkpoint(folder_path) as file:
                assert {file.dtype(key) for key in file.keys()} == {"BF16"}

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("someone/tiny", dtype="bfloat16") == "https://hub/someone/tiny"
    with pytest.raises(ValueError, match="The hub refuses another/tiny"):
        model.push_to_hub("another/tiny")


def test_push_to_hub_needs_a_network_and_a_name(tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    with pytest.raises(ConnectionError, match="someone/tiny cannot be uploaded .*offline"):
        model.push_to_hub("someone/tiny")
    with pytest.raises(ValueError, match="no name of a repository"):
        model.push_to_hub("tiny")


@pytest.mark.no_backend
def test_the_hub_is_known_in_a_process_of_its_own():
    code = "from dl_techniques.checkpoints.hub import local_folder; local_folder('hf://a/b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConnectionError: hf://a/b is not in the local cache" in done.stderr
