"""What a person types: lines with history and completion, and image files named in them."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    import readline
except ImportError:  # Not everywhere; lines can be typed without it.
    readline = None

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# A quoted word, or one in which blanks are escaped, as terminals write files dropped on them.
_WORD = re.compile(r"'[^']+'|\"[^\"]+\"|(?:\\.|[^\s\\])+")


def as_path(word: str) -> Path:
    """Return the path that a word of a line names."""
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        word = word[1:-1]
    else:
        word = re.sub(r"\\(.)", r"\1", word)
    return Path(word.removeprefix("file://")).expanduser()


def words(text: str) -> list[str]:
    """Return the words of a line, quotes and escapes as they are."""
    return _WORD.findall(text)


def parts_of(text: str) -> list[dict]:
    """Return a message's content, in which image files that are there have become images."""
    parts, end = [], 0
    for match in _WORD.finditer(text):
        path = as_path(match.group())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            parts += [_text(text[end : match.start()]), {"type": "image", "image": str(path)}]
            end = match.end()
    parts.append(_text(text[end:]))
    return [part for part in parts if part.get("text") != ""]


def _text(text):
    return {"type": "text", "text": text.strip()}


def completions(line: str, commands: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return what the last word of a line may become.

    Args:
        line: The line up to the cursor.
        commands: The words that begin with a slash, for the first word.
        names: Names of settings, for the word behind /set.
    """
    word = re.search(r"(?:\\.|[^\s\\])*$", line).group()
    before = line[: len(line) - len(word)]
    if not before and word.startswith("/"):
        found = [command + " " for command in commands if command.startswith(word)]
        if found:
            return found
    if before.strip() == "/set":
        return [name + " " for name in names if name.startswith(word)]
    return list(_paths(word))


def _paths(word) -> Iterator[str]:
    folder, slash, start = word.rpartition("/")
    path = as_path((folder or "/") if slash else ".")
    with contextlib.suppress(OSError):
        for entry in sorted(path.iterdir()):
            name = entry.name
            if name.startswith(as_path(start).name) and (start or not name.startswith(".")):
                escaped = re.sub(r"([\s\\'\"])", r"\\\1", name)
                is_folder = entry.is_dir()
                if is_folder or entry.suffix.lower() in IMAGE_SUFFIXES:
                    yield f"{folder}{slash}{escaped}{'/' if is_folder else ' '}"


def prepare_line_editing(complete: Callable[[str], list[str]]) -> None:
    """Let `input` have completion by tab, and the history of earlier conversations.

    Args:
        complete: The line up to the cursor -> what its last word may become.
    """
    if readline is None:
        return

    def completer(text, state):
        line = readline.get_line_buffer()[: readline.get_endidx()]
        # readline ends words at blanks, escaped or not: it replaces the end of ours.
        kept = len(re.search(r"(?:\\.|[^\s\\])*$", line).group()) - len(text)
        found = [word[kept:] for word in complete(line)]
        return found[state] if state < len(found) else None

    readline.set_completer(completer)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(_history_file())


def keep_history() -> None:
    """Write the history, which nobody else can read."""
    if readline is None or not readline.get_current_history_length():
        return
    file = _history_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.write_history_file(file)


def _history_file():
    states = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return states / "dl_techniques" / "chat_history"
