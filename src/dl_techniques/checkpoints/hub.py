"""Folders on the Hugging Face hub: their local copies, and uploads."""

import os
import pathlib

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id

PREFIX = "hf://"
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "*tokens*.json")
CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
_UNREACHABLE = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError)


def local_folder(
    source: str | os.PathLike,
    revision: str | None = None,
    files: tuple[str, ...] = CONFIG_FILES + WEIGHT_FILES,
) -> pathlib.Path:
    """Return the folder of a preset; one on the hub is downloaded, or found in the cache.

    `HF_HUB_OFFLINE`, `HF_HOME` and the other settings of huggingface_hub hold.

    Args:
        source: A folder, or "hf://owner/name".
        revision: Branch, tag or commit on the hub.
        files: Patterns of the files that are needed; never those of sub-folders.

    Raises:
        ValueError: if there is no such folder, repository or revision.
        ConnectionError: if the hub cannot be reached and the cache lacks the repository.
    """
    text = os.fspath(source)
    if not text.startswith(PREFIX):
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for {PREFIX}owner/name, not for {text!r}.")
        if not os.path.isdir(text):
            raise ValueError(f"There is no folder {text!r}; on the hub: {PREFIX}owner/name.")
        return pathlib.Path(text)
    name = repository_name(text)
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(files), ignore_patterns=["*/*"]
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(f"{text} (revision {revision or 'main'}): {_first_line(error)}") from error
    except _UNREACHABLE as error:
        raise ConnectionError(
            f"{text} is not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}: {_first_line(error)})."
        ) from error
    return pathlib.Path(folder)


def repository_name(text: str) -> str:
    """Return "owner/name" of "hf://owner/name" or of itself.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no name of a repository: expected {PREFIX}owner/name.")
    name = text.removeprefix(PREFIX)
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ValueError(f"{text!r} is no name of a repository: {_first_line(error)}") from error
    if name.count("/") != 1:
        raise ValueError(f"{text!r} is no name of a repository: expected {PREFIX}owner/name.")
    return name


def upload_folder(folder: str | os.PathLike, repository: str, private: bool | None = None) -> str:
    """Upload a folder and return its address; the repository is made where it does not exist.

    Args:
        folder: What to upload.
        repository: "owner/name".
        private: Whether a new repository is private; None: as the owner has set it.

    Raises:
        ValueError: for a malformed name, or if the hub refuses.
        ConnectionError: if the hub cannot be reached.
    """
    name = repository_name(repository)
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload with dl_techniques"
        )
    except errors.HfHubHTTPError as error:
        raise ValueError(f"The hub refuses {name}: {_first_line(error)}") from error
    except _UNREACHABLE as error:
        raise ConnectionError(
            f"{name} cannot be uploaded ({type(error).__name__}: {_first_line(error)})."
        ) from error
    return f"{api.endpoint}/{name}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
