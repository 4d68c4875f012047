"""The small JSON files beside a tokenizer's vocabulary, in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
_NAMES = ("pad", "bos", "eos")


@dataclass(frozen=True)
class FolderTokens:
    """What the JSON files of a folder say about tokens.

    Attributes:
        named: `pad`, `bos`, `eos` -> spelling or None; only the names that the files mention.
        special: spellings that the files call special, in their order.
        added: (id, spelling, is it special) of the tokens beyond the vocabulary, by id.
        tokenizer_class: the class that wrote the folder, or None.
        config: the whole `tokenizer_config.json`.
    """

    named: dict[str, str | None]
    special: list[str]
    added: list[tuple[int, str, bool]]
    tokenizer_class: str | None
    config: dict[str, Any]


def read_json(path: Path) -> Any:
    """Content of a JSON file; ValueError naming the file when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing (then empty)."""
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _spelling(value: Any, where: str) -> str | None:
    """A token is written as a string or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {value!r}")
    return value


def read_folder_tokens(folder: Path) -> FolderTokens:
    """Read the JSON files of a tokenizer folder; each of them may be missing.

    Raises:
        ValueError: a file is no JSON object or holds something else than tokens.
    """
    config = read_object(folder / CONFIG_FILE)
    # The config counts first, even where it says null; the map fills in what it does not mention.
    merged = read_object(folder / SPECIAL_TOKENS_FILE) | config
    source = f"{folder / CONFIG_FILE} or {SPECIAL_TOKENS_FILE}"
    named = {
        name: _spelling(merged[f"{name}_token"], f"{name}_token in {source}")
        for name in _NAMES
        if f"{name}_token" in merged
    }
    extra = merged.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        raise ValueError(f"additional_special_tokens in {source} must be a list, not {extra!r}")
    special = [_spelling(token, f"additional_special_tokens in {source}") for token in extra]
    special += [token for token in named.values() if token is not None]
    return FolderTokens(
        named=named,
        special=list(dict.fromkeys(special)),
        added=_read_added(folder, config, special),
        tokenizer_class=config.get("tokenizer_class"),
        config=config,
    )


def _read_added(
    folder: Path, config: dict[str, Any], special: list[str]
) -> list[tuple[int, str, bool]]:
    path = folder / ADDED_TOKENS_FILE
    flags = {}
    added = {}
    try:
        for token_id, entry in config.get("added_tokens_decoder", {}).items():
            added[int(token_id)] = entry["content"]
            flags[entry["content"]] = bool(entry.get("special", False))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"added_tokens_decoder in {folder / CONFIG_FILE} must map ids to objects with a content"
        ) from error
    for token, token_id in read_object(path).items():
        if not isinstance(token_id, int) or added.get(token_id, token) != token:
            raise ValueError(f"{path} gives {token!r} the id {token_id!r}, which cannot be")
        added[token_id] = token
    # Without a word on it a token counts as special: the safe reading, as text cannot produce it.
    return [(i, added[i], flags.get(added[i], True) or added[i] in special) for i in sorted(added)]


def write_folder_tokens(
    folder: Path,
    tokenizer_class: str,
    named: Mapping[str, str | None],
    special: Iterable[str],
    **more: Any,
) -> None:
    """Write `tokenizer_config.json`: the names of pad, bos and eos, and the special tokens."""
    config = {"tokenizer_class": tokenizer_class, "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": named[name] for name in _NAMES}
    config["additional_special_tokens"] = list(special)
    write_json(folder / CONFIG_FILE, config | more)


def write_json(path: Path, content: Any) -> None:
    """Write readable UTF-8 JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def empty_place(folder: str | Path, forbidden: Iterable[str]) -> Path:
    """Make `folder`; refuse one that holds files which would be loaded in place of ours.

    Raises:
        ValueError: one of the `forbidden` names is there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = [name for name in forbidden if (folder / name).exists()]
    if found:
        raise ValueError(
            f"{folder} already holds another tokenizer ({', '.join(found)}); save into a new folder"
        )
    return folder
