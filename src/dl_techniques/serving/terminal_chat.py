"""TerminalChat: `dl-techniques chat`."""

import dataclasses
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.generation.sampling import GREEDY
from dl_techniques.preprocessing.images import load_image
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.requests import ChatRequest, FailedError, FullError, TimedOutError
from dl_techniques.serving.terminal_input import (
    as_path,
    completions,
    image_file,
    images_and_text,
    names_image,
    prepare_line_editing,
    read_line,
    words,
)
from dl_techniques.serving.terminal_interrupts import Interrupts

HELP = """\
Type a message; image files named in it are shown to the model, several too.
  /image PATH ...    images for the next message (tab completes)
  /clear             begin a new conversation
  /save FILE         write the conversation as JSON
  /set NAME VALUE    change a setting; /set alone shows them
  /help              this
  /quit              end, as ctrl-D does
ctrl-C stops an answer."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
# The tokens of shorter answers come all at once.
LEAST_TOKENS_FOR_SPEED = 8


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as it was when it was shown: its file may change.

    Attributes:
        path: As it was typed.
        data: The file's bytes.
    """

    path: str
    data: bytes

    def read(self) -> bytes:
        """Return the bytes, as sources of images do."""
        return self.data

    def __repr__(self):
        return f"'{self.path}'"  # In errors.


class TerminalChat:
    """A conversation at a terminal.

    Args:
        engine: Answers.
    """

    def __init__(self, engine: ServingEngine):
        self._engine = engine
        self._interrupts = Interrupts()
        self._messages: list[dict[str, Any]] = []
        self._pictures: list[Picture] = []
        # max_new_tokens 0: as many as there is room for.
        self._settings = {**dataclasses.asdict(GREEDY), "seed": 0, "max_new_tokens": 0}
        self._most = {"seed": np.iinfo("int64").max, "max_new_tokens": engine.max_new_tokens}
        self._commands = {
            "/image": self._add_images,
            "/clear": self._clear,
            "/save": self._save,
            "/set": self._set,
            "/help": self._help,
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Read messages and answer them until the end of the input."""
        prepare_line_editing(lambda line: completions(line, [*self._commands], [*self._settings]))
        with self._interrupts:
            while True:
                try:
                    self._interrupts.begin_line()
                    line = read_line("> ").strip()
                    if line:
                        self._obey(line)
                except EOFError:
                    return
                except KeyboardInterrupt:  # The line is given up, not the program.
                    print()

    def _obey(self, line):
        name, *arguments = words(line) or [""]
        try:
            if name in self._commands:
                self._command(name, arguments)
            # A message may begin with the path of an image.
            elif name.startswith("/") and not (names_image(name) or as_path(name).exists()):
                raise ValueError(f"There is no command {name}: see /help.")
            else:
                self._ask(line)
        except (ValueError, OSError) as error:
            _complain(error)

    def _command(self, name, arguments):
        command = self._commands[name]
        try:
            inspect.signature(command).bind(*arguments)
        except TypeError:
            raise ValueError(f"{name} is not used like this: see /help.") from None
        command(*arguments)

    def _ask(self, line):
        paths, text = images_and_text(line)
        pictures = self._pictures + [self._shown(path) for path in paths]
        self._interrupts.hold()  # The engine must not be broken off within its locks.
        self._pictures = []
        content = [{"type": "image", "image": picture} for picture in pictures]
        content += [{"type": "text", "text": text}] if text else []
        message = {"role": "user", "content": content}
        answer = ""
        try:
            answer = self._answer([*self._messages, message])
        except (ValueError, FailedError, FullError, TimedOutError) as error:
            hint = " /clear begins a new conversation." if self._messages else ""
            _complain(f"{error}{hint}")
        if answer:
            self._messages += [message, {"role": "assistant", "content": answer}]
        else:  # Templates refuse empty answers.
            images = ", nor are its images" if pictures else ""
            print(_dim(f"The message is not kept{images}."))

    def _answer(self, messages):
        """Print the answer to a conversation, and return as much of it as there is."""
        sampler = dataclasses.replace(GREEDY, **{k: self._settings[k] for k in vars(GREEDY)})
        most = self._settings["max_new_tokens"] or None
        request = ChatRequest(messages, most, sampler, self._settings["seed"])
        ticket, text, note = self._engine.submit(request), "", ""
        try:
            self._interrupts.release()
            for event in ticket:
                text += event.text
                print(event.text, end="", flush=True)
        except KeyboardInterrupt:
            note = "stopped, "
        finally:
            ticket.cancel()
            print()
        print(_dim(note + _speed(ticket)))
        return text

    def _add_images(self, *names):
        if not names:
            raise ValueError("Which image? /image PATH")
        self._pictures += [self._shown(image_file(name)) for name in names]

    def _shown(self, path):
        """Return the picture of a file, which is decoded: a broken one is refused here."""
        picture = Picture(str(path), path.read_bytes())
        width, height = load_image(picture).size
        print(_dim(f"[{path.name}: {width} x {height}]"))
        return picture

    def _clear(self):
        self._messages, self._pictures = [], []
        print(_dim("A new conversation."))

    def _save(self, name=None):
        if name is None:
            raise ValueError("Where? /save FILE")
        messages = {"messages": self._messages}
        text = json.dumps(messages, indent=1, ensure_ascii=False, default=lambda p: p.path)
        _write_new(as_path(name), text.encode())
        print(_dim(f"{len(self._messages)} messages written."))

    def _set(self, name=None, value=""):
        if name is None:
            print("\n".join(f"{key} {number}" for key, number in self._settings.items()))
            return
        if name not in self._settings:
            raise ValueError(f"There is no setting {name!r}, only {', '.join(self._settings)}.")
        try:
            number = type(self._settings[name])(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}.") from None
        if name in vars(GREEDY):
            dataclasses.replace(GREEDY, **{name: number})  # Refuses what is out of range.
        elif not 0 <= number <= self._most[name]:
            raise ValueError(f"{name}={number} must be in [0, {self._most[name]}].")
        self._settings[name] = number

    def _help(self):
        print(HELP)

    def _quit(self):
        raise EOFError


def _complain(error):
    print(f"Error: {error}", file=sys.stderr)


def _dim(text):
    return f"{DIM}{text}{PLAIN}" if sys.stdout.isatty() else text


def _speed(ticket):
    tokens, ended = ticket.new_tokens, ticket.ended or time.monotonic()
    if tokens < LEAST_TOKENS_FOR_SPEED:
        return f"{tokens} tokens, {ended - ticket.began:.1f} s"
    seconds = max(ended - ticket.first, 1e-9)
    return f"{tokens} tokens, {(tokens - 1) / seconds:.1f} tokens/s"


def _write_new(path: Path, data: bytes):
    """Write a file that is not there yet, or nothing."""
    file = path.open("xb")
    try:
        with file:
            file.write(data)
    except BaseException:  # A full disk, or ctrl-C.
        path.unlink()
        raise
