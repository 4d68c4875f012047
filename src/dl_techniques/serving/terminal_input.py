"""What a person types: lines with history and completion, and image files named in them."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

try:
    import readline
except ImportError:  # Not everywhere; lines can be typed without it.
    readline = None

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# As terminals write files dropped on them: quoted, or with escaped blanks. A quote within a word
# is an apostrophe.
_WORD = re.compile(r"(?=\S)([(\[{]*)((?:'[^']*'|\"[^\"]*\"|\\.)*)((?:\\.|\S)*)")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"|\\(.)")
_ESCAPED = re.compile(r"\\(.)")
# The word up to the cursor: behind a quote that is still open, or the last one.
_LAST_WORD = re.compile(r"(?<!\S)'[^']*$|(?<!\S)\"[^\"]*$|(?:\\.|[^\s\\])*$")
_IMAGE_NAME = re.compile(
    rf"[^\s/(\[{{\"',;:]\.({'|'.join(suffix[1:] for suffix in IMAGE_SUFFIXES)})(?![\w./-]*\w)",
    re.IGNORECASE,
)
_BEFORE = "()[]{},;:!?\"'"
_BEHIND = _BEFORE + "."


def words(text: str) -> list[str]:
    """Return the words of a line that are not empty, quotes and escapes as they are."""
    return [match.group() for match in _WORD.finditer(text) if _unquoted(match)]


def as_path(word: str) -> Path:
    """Return the path that a word of a line names."""
    return _path(_unquoted(_WORD.fullmatch(word)))


def names_image(word: str) -> bool:
    """Return whether a word looks like the name of an image, be there one or not."""
    return bool(_IMAGE_NAME.search(_unquoted(_WORD.fullmatch(word))))


def image_file(word: str) -> Path:
    """Return the file that a word names, perhaps between punctuation.

    Raises:
        ValueError: if there is none.
    """
    name = _unquoted(_WORD.fullmatch(word))
    end = name.rstrip(_BEHIND)
    for path in map(_path, (name, end, end.lstrip(_BEFORE))):
        if path.is_file():
            return path
    if "://" in name and "file://" not in name:
        raise ValueError(f"Images are not fetched: save {name} as a file first.")
    raise ValueError(f"No such image: {name}")


def images_and_text(line: str) -> tuple[list[Path], str]:
    """Return the images that a message names, and the message without them.

    Raises:
        ValueError: if an image is not there.
    """
    images, text, end = [], "", 0
    for match in _WORD.finditer(line):
        word = match.group()
        if names_image(word):
            images.append(image_file(word))
            text = f"{text} {line[end : match.start()].strip()}".strip()
            if text:  # Its end stays the end of a sentence.
                text += "".join(mark for mark in word[len(word.rstrip(_BEHIND)) :] if mark in ".?!")
            end = match.end()
    return images, f"{text} {line[end:].strip()}".strip()


def _unquoted(match):
    brackets, quoted, rest = match.groups()
    quoted = _QUOTED.sub(lambda part: part[part.lastindex], quoted)
    return brackets + quoted + _ESCAPED.sub(r"\1", rest)


def _path(name):
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    return Path(os.path.expanduser(name))  # Path.expanduser refuses names that are no user's.


def completions(line: str, commands: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return what the last word of a line may become.

    Args:
        line: The line up to the cursor.
        commands: The words that begin with a slash, for the first word.
        names: Names of settings, for the word behind /set.
    """
    word = _LAST_WORD.search(line).group()
    before = line[: len(line) - len(word)]
    if not before and word.startswith("/"):
        found = [command + " " for command in commands if command.startswith(word)]
        if found:
            return found
    if before.strip() == "/set":
        return [name + " " for name in names if name.startswith(word)]
    return list(_files(word))


def _files(word) -> Iterator[str]:
    quote = word[:1] if word[:1] in ("'", '"') else ""
    folder, slash, start = word[len(quote) :].rpartition("/")
    start = start if quote else _ESCAPED.sub(r"\1", start)
    path = _path(((folder if quote else _ESCAPED.sub(r"\1", folder)) or "/") if slash else ".")
    with contextlib.suppress(OSError):
        for entry in sorted(path.iterdir()):
            name = entry.name
            if name.startswith(start) and (start or not name.startswith(".")):
                is_folder = entry.is_dir()
                if is_folder or entry.suffix.lower() in IMAGE_SUFFIXES:
                    end = "/" if is_folder else f"{quote} "
                    yield f"{quote}{folder}{slash}{_written(name, quote)}{end}"


def _written(name, quote):
    if quote:
        return name.replace(quote, f"{quote}\\{quote}{quote}")
    return re.sub(r"([\s\\'\"])", r"\\\1", name)


def prepare_line_editing(complete: Callable[[str], list[str]]) -> None:
    """Let `read_line` have completion by tab, and the history of earlier conversations.

    Args:
        complete: The line up to the cursor -> what its last word may become.
    """
    if readline is None:
        return

    def completer(text, state):
        line = readline.get_line_buffer()[: readline.get_endidx()]
        # readline ends words at blanks, escaped or not: it replaces the end of ours.
        kept = len(_LAST_WORD.search(line).group()) - len(text)
        found = [word[kept:] for word in complete(line)]
        return found[state] if state < len(found) else None

    readline.set_completer(completer)
    readline.set_completer_delims(" \t\n")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(_history_file())


def read_line(prompt: str) -> str:
    """Return the next line, which the history keeps at once, however the program ends.

    Raises:
        EOFError: at the end of the input, or if it is closed.
    """
    if sys.stdin is None:
        raise EOFError
    keeps = hasattr(readline, "append_history_file")  # Not every libedit has it.
    known = readline.get_current_history_length() if keeps else 0
    try:
        line = input(prompt)
    except EOFError:
        print()
        raise
    if keeps and readline.get_current_history_length() > known:
        _keep_last_line()
    return line


def _keep_last_line():
    """Append to the history file, which nobody else can read; other chats may do so meanwhile."""
    file = _history_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.append_history_file(1, file)


def _history_file():
    states = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return states / "dl_techniques" / "chat_history"
