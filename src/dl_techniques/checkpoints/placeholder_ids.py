"""The id of a token in a tokenizer's files, without loading the tokenizer."""

import pathlib
from collections.abc import Iterator

from dl_techniques.checkpoints.json_files import read_json

# A tokenizer.json lists every piece: one of 150,000 pieces has 5 MB.
MAX_TOKENIZER_BYTES = 100_000_000


def token_id_in(folder: pathlib.Path, token: str) -> int | None:
    """Return the id that the tokenizer's files of a folder give an added token, None if none do.

    Args:
        folder: The folder.
        token: The token's text.

    Raises:
        ValueError: if a file is broken, or two of them disagree.
    """
    found = {name: i for name, text, i in _added(pathlib.Path(folder)) if text == token}
    if len(set(found.values())) > 1:
        raise ValueError(f"{folder}: the files disagree about the id of {token!r}: {found}.")
    return next(iter(found.values()), None)


def _added(folder: pathlib.Path) -> Iterator[tuple[str, str, int]]:
    """Yield (file, token, id) for the added tokens of every file that lists some."""

    def content(name: str) -> dict:
        path = folder / name
        return read_json(path, MAX_TOKENIZER_BYTES) if path.is_file() else {}

    entries = content("tokenizer.json").get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and _is_id(entry.get("id")):
            yield "tokenizer.json", entry.get("content"), entry["id"]
    decoder = content("tokenizer_config.json").get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and number.isdecimal():
            yield "tokenizer_config.json", entry.get("content"), int(number)
    for token, number in content("added_tokens.json").items():
        if _is_id(number):
            yield "added_tokens.json", token, number


def _is_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
