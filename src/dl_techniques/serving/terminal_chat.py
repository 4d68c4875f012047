"""TerminalChat: `dl-techniques chat`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from dl_techniques.generation.sampling import GREEDY
from dl_techniques.preprocessing.images import image_size_of
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.requests import ChatRequest, FailedError, TimedOutError
from dl_techniques.serving.terminal_input import (
    as_path,
    completions,
    keep_history,
    parts_of,
    prepare_line_editing,
    words,
)

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


class TerminalChat:
    """A conversation at a terminal.

    Args:
        engine: Answers.
    """

    def __init__(self, engine: ServingEngine):
        self._engine = engine
        self._messages: list[dict[str, Any]] = []
        self._images: list[str] = []
        # max_new_tokens 0: as many as there is room for.
        self._settings = {**dataclasses.asdict(GREEDY), "seed": 0, "max_new_tokens": 0}
        self._commands = {
            "/image": self._add_images,
            "/clear": self._clear,
            "/save": self._save,
            "/set": self._set,
            "/help": lambda rest: print(HELP),
            "/quit": None,
        }

    def run(self) -> None:
        """Read messages and answer them until the end of the input."""
        prepare_line_editing(lambda line: completions(line, [*self._commands], [*self._settings]))
        try:
            while True:
                try:
                    line = input("> ").strip()
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:  # What was typed is given up, not the program.
                    print()
                    continue
                if line == "/quit":
                    return
                if line:
                    self._obey(line)
        finally:
            keep_history()

    def _obey(self, line):
        try:
            name, _, rest = line.partition(" ")
            # A message may begin with the path of an image.
            if name in self._commands:
                self._commands[name](rest.strip())
            elif line.startswith("/") and not as_path(words(line)[0]).exists():
                raise ValueError(f"There is no command {name}: see /help.")
            else:
                self._ask(line)
        except (ValueError, OSError, FailedError, TimedOutError) as error:
            print(f"Error: {error}", file=sys.stderr)

    def _ask(self, line):
        images = [{"type": "image", "image": path} for path in self._images]
        message = {"role": "user", "content": images + parts_of(line)}
        for part in message["content"][len(images) :]:
            if part["type"] == "image":
                self._describe(part["image"])
        sampler = dataclasses.replace(GREEDY, **{k: self._settings[k] for k in vars(GREEDY)})
        request = ChatRequest(
            [*self._messages, message],
            self._settings["max_new_tokens"] or None,
            sampler,
            self._settings["seed"],
        )
        ticket, text = self._engine.submit(request), ""
        try:
            for event in ticket:
                text += event.text
                print(event.text, end="", flush=True)
            note = ""
        except KeyboardInterrupt:
            note = "stopped, "
        finally:
            ticket.cancel()
            print()
        print(self._dim(note + _speed(ticket)))
        self._images = []
        if text:  # Templates refuse empty answers; the question is forgotten with it.
            self._messages += [message, {"role": "assistant", "content": text}]

    def _add_images(self, rest):
        if not rest:
            raise ValueError("Which? /image PATH")
        paths = [str(as_path(word)) for word in words(rest)]
        for path in paths:
            self._describe(path)
        self._images += paths

    def _describe(self, path):
        width, height = image_size_of(path)
        print(self._dim(f"[{Path(path).name}: {width} x {height}]"))

    def _clear(self, rest):
        self._messages, self._images = [], []
        print(self._dim("A new conversation."))

    def _save(self, rest):
        if not rest:
            raise ValueError("Where? /save FILE")
        with as_path(rest).open("x", encoding="utf-8") as file:
            json.dump({"messages": self._messages}, file, indent=1, ensure_ascii=False)
        print(self._dim(f"{len(self._messages)} messages written."))

    def _set(self, rest):
        name, _, value = rest.partition(" ")
        if not name:
            print("\n".join(f"{key} {number:g}" for key, number in self._settings.items()))
            return
        if name not in self._settings:
            raise ValueError(f"There is no setting {name!r}, only {', '.join(self._settings)}.")
        try:
            number = type(self._settings[name])(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}.") from None
        if name in vars(GREEDY):
            dataclasses.replace(GREEDY, **{name: number})  # Refuses what is out of range.
        elif number < 0:
            raise ValueError(f"{name}={number} must be at least 0.")
        self._settings[name] = number

    @staticmethod
    def _dim(text):
        return f"{DIM}{text}{PLAIN}" if sys.stdout.isatty() else text


def _speed(ticket):
    if ticket.first is None or ticket.ended is None or ticket.new_tokens < 2:
        return f"{ticket.new_tokens} tokens"
    seconds = max(ticket.ended - ticket.first, 1e-9)
    return f"{ticket.new_tokens} tokens, {(ticket.new_tokens - 1) / seconds:.1f} tokens/s"
