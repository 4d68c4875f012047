"""The chat at a real pseudo-terminal."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pexpect
import pytest
from pexpect import fdpexpect
from PIL import Image
from tiny_chat import LETTERS, chat_model

from dl_techniques.serving.requests import Event, FailedError, FullError, Ticket
from dl_techniques.serving.terminal_chat import TerminalChat

pytestmark = pytest.mark.no_backend

PROMPT = "> "
# Every step takes a while, so that there is time to stop an answer.
PROGRAM = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # Background jobs ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it.
os.close(os.open(os.ttyname(0), os.O_RDWR))  # From here on ctrl-C of this terminal is for us.
from dl_techniques.generation.rolling_batch import RollingBatch

advance = RollingBatch.advance
RollingBatch.advance = lambda batch, steps: (time.sleep(0.1), advance(batch, steps))

from dl_techniques.cli import main
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of a model whose answers are long."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = chat_model(max_positions=4096)
    head, _ = model.language_decoder.head
    weights = np.array(keras.ops.convert_to_numpy(head))
    weights[:, ~LETTERS] = 0  # Some letter is always likelier, so that no answer ends.
    head.assign(weights)
    model.save(folder / "nanovlm_final.keras")
    model.processor.save(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "my picture.png")
    return folder


@contextlib.contextmanager
def started(checkpoint):
    """A chat at a terminal of its own."""
    environment = os.environ | {"XDG_STATE_HOME": str(checkpoint / "state"), "TERM": "dumb"}
    # Not by pexpect itself, which would fork this process with its threads.
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "chat", str(checkpoint)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        cwd=checkpoint,
        start_new_session=True,
    )
    os.close(theirs)
    child = fdpexpect.fdspawn(ours, encoding="utf-8", timeout=240)
    child.process = process
    try:
        child.expect_exact(PROMPT)
        assert "readline:" not in child.before  # It complains of what it does not know.
        yield child
    finally:
        process.kill()
        process.wait()
        child.close()


@pytest.fixture(scope="module")
def running(checkpoint):
    with started(checkpoint) as chat:
        yield chat


@pytest.fixture
def terminal(running):
    """The running chat at the beginning of a conversation of short answers."""
    say(running, "/clear")
    say(running, "/set max_new_tokens 20")
    return running


def say(terminal, line):
    """Type a line and return what is printed until the next prompt."""
    terminal.sendline(line)
    terminal.expect_exact("\r\n")
    terminal.expect_exact(PROMPT)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.before)


def test_settings_and_help(terminal):
    assert "ctrl-C" in say(terminal, "/help")
    assert "temperature 0" in say(terminal, "/set")
    assert say(terminal, "/set max_new_tokens 5").strip() == ""
    assert "max_new_tokens 5" in say(terminal, "/set")
    for wrong, message in (
        ("/set colour 3", "There is no setting 'colour'"),
        ("/set top_k x", "top_k must be a number, got 'x'"),
        ("/set top_p 2", "top_p=2.0 must be in"),
        ("/set seed -1", "seed=-1 must be in [0, "),
        ("/set max_new_tokens 513", "max_new_tokens=513 must be in [0, 512]"),
        (f"/set seed {2**63}", f"seed={2**63} must be in [0, {2**63 - 1}]"),
        ("/set seed 1 2", "/set is not used like this: see /help."),
        ("/quit now", "/quit is not used like this: see /help."),
        ("/nothing", "There is no command /nothing"),
        ("/image", "Which image?"),
        ('/image ""', "Which image?"),
        ("/image none.png", "No such image: none.png"),
        ("/image ~nouser/x.png", "No such image: ~nouser/x.png"),
        ("/none.png is what?", "No such image: /none.png"),
        ("/save", "Where?"),
        ("/save ~nouser/x", "~nouser/x"),
    ):
        answer = say(terminal, wrong)
        assert message in answer and not re.search(r"\d tokens", answer)


def test_numbers_as_they_were_set(terminal):
    say(terminal, f"/set seed {2**63 - 1}")
    assert f"seed {2**63 - 1}\r\n" in say(terminal, "/set")
    for text in ("are there ~5 objects?", '""'):
        assert "20 tokens" in say(terminal, text)
    say(terminal, "/set seed 0")


def test_an_answer_with_its_speed(terminal):
    answer = say(terminal, "what is it?")
    assert re.search(r"[a-z]{20}\s+20 tokens, [\d.]+ tokens/s", answer)
    say(terminal, "/set max_new_tokens 3")  # Of so few it means nothing.
    assert re.search(r"3 tokens, \d+\.\d s\s", say(terminal, "what is it?"))


def test_conversation_with_images_by_path_and_by_completed_command(terminal, checkpoint):
    assert "[my picture.png: 30 x 20]" in say(terminal, r"see my\ picture.png what is it?")
    terminal.send("/image my\t")
    terminal.expect_exact(r"my\ picture.png ")
    terminal.send("'my\t")
    terminal.expect_exact("'my picture.png' ")
    terminal.sendline("")
    terminal.expect_exact("[my picture.png: 30 x 20]")
    terminal.expect_exact("[my picture.png: 30 x 20]")
    terminal.expect_exact(PROMPT)
    assert re.search(r"\d+ tokens", say(terminal, "and here?"))
    assert "messages written" in say(terminal, "/save saved.json")
    messages = json.loads((checkpoint / "saved.json").read_text())["messages"]
    image = {"type": "image", "image": "my picture.png"}
    assert [message["content"] for message in messages[::2]] == [
        [image, {"type": "text", "text": "see what is it?"}],  # Images first, as by the command.
        [image, image, {"type": "text", "text": "and here?"}],
    ]
    assert "exists" in say(terminal, "/save saved.json")
    say(terminal, "/clear")
    assert "0 messages" in say(terminal, "/save empty.json")


def test_control_c_stops_the_answer_and_not_the_program(terminal):
    say(terminal, "/set max_new_tokens 512")
    terminal.sendline("tell me a long story")
    terminal.expect_exact("\r\n")
    terminal.expect("[a-z]{4}")
    terminal.send("\x03")
    terminal.expect(r"stopped, (\d+) tokens")
    assert int(terminal.match[1]) < 512
    terminal.expect_exact(PROMPT)
    # At the prompt it gives up the line. CPython forgets a signal until the next line if it comes
    # while readline takes a letter, so ctrl-C follows, as a person's does, after the echo.
    terminal.send("half a line")
    terminal.expect_exact("half a line")
    time.sleep(1)
    terminal.send("\x03")
    terminal.expect_exact(PROMPT)
    say(terminal, "/set max_new_tokens 5")
    assert "tokens" in say(terminal, "still there?")


def test_an_image_is_as_it_was_when_it_was_shown(terminal, checkpoint):
    gone = checkpoint / "gone.png"
    gone.write_bytes((checkpoint / "my picture.png").read_bytes())
    assert "20 tokens" in say(terminal, "what is in gone.png ?")
    gone.write_text("another")
    assert "20 tokens" in say(terminal, "and now?")
    gone.unlink()
    assert "20 tokens" in say(terminal, "and now?")


def test_a_broken_image_is_refused_when_it_is_added(terminal, checkpoint):
    whole = (checkpoint / "my picture.png").read_bytes()
    (checkpoint / "broken.png").write_bytes(whole[: len(whole) // 2])
    assert "'broken.png' cannot be decoded" in say(terminal, "/image broken.png")
    assert "'broken.png' cannot be decoded" in say(terminal, "what is broken.png?")
    assert "20 tokens" in say(terminal, "what is it?")


def test_a_full_conversation(terminal):
    too_long = "far " * 1200
    assert "/clear" not in say(terminal, too_long)
    say(terminal, "what is it?")
    say(terminal, "/image my\\ picture.png")
    answer = say(terminal, too_long)
    assert "shorten the prompts or ask for fewer tokens. /clear begins a new" in answer
    assert "The message is not kept, nor are its images." in answer
    assert "20 tokens" in say(terminal, "what is it?")


class Engine:
    """Answers at once, and does something in between."""

    max_new_tokens = 512

    def __init__(self, submitting=lambda: None, answering=lambda: None):
        self.conversations = []
        self._submitting, self._answering = submitting, answering

    def submit(self, request):
        self.conversations.append(request.messages)
        self._submitting()
        ticket = AnsweredTicket(request, 1)
        ticket.answering = self._answering
        return ticket


class AnsweredTicket(Ticket):
    def __iter__(self):
        yield Event("half ")
        self.answering()
        yield Event("whole", finish_reason="stop")

    def cancel(self):
        super().cancel()
        self.answering()


@pytest.fixture
def talk(monkeypatch, tmp_path, capsys):
    """(engine, lines) -> what is printed; without a terminal, so that all happens in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("dl_techniques.serving.terminal_input.readline", None)
    Image.new("RGB", (3, 2)).save("a.png")

    def talk(engine, *lines):
        typed = iter(lines)

        def read(prompt):
            for line in typed:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", read)
        try:
            TerminalChat(engine).run()
        except KeyboardInterrupt:  # It would end the tests as well.
            pytest.fail("The chat has ended.")
        return "".join(capsys.readouterr())

    return talk


class ControlC:
    """So many of them, the first time."""

    def __init__(self, times):
        self._left = times

    def __call__(self, *arguments, **options):
        while self._left:
            self._left -= 1
            signal.raise_signal(signal.SIGINT)


def test_control_c_while_a_request_is_submitted(talk):
    engine = Engine(submitting=ControlC(2))
    printed = talk(engine, "one", "two")
    assert "stopped, 0 tokens" in printed and "not kept" in printed
    assert [len(conversation) for conversation in engine.conversations] == [1, 1]


def test_two_control_c_during_an_answer(talk):
    engine = Engine(answering=ControlC(2))
    assert "stopped, 0 tokens" in talk(engine, "one", "two")
    assert engine.conversations[1][1] == {"role": "assistant", "content": "half "}


def test_control_c_while_an_image_is_read(talk, monkeypatch):
    engine, opened, interrupt = Engine(), Image.open, ControlC(1)
    monkeypatch.setattr(Image, "open", lambda file: (interrupt(), opened(file))[1])
    assert talk(engine, "/image a.png", "/image a.png", "one").count("[a.png: 3 x 2]") == 1
    assert [part["type"] for part in engine.conversations[0][0]["content"]] == ["image", "text"]


@pytest.mark.parametrize("error", [ValueError("bad"), FullError("bad", 1), FailedError("bad")])
def test_a_refused_message_does_not_block_the_next(talk, error):
    def refuse():
        if len(engine.conversations) == 1:
            raise error

    engine = Engine(submitting=refuse)
    printed = talk(engine, "/image a.png", "one", "two")
    assert "Error: bad\n" in printed and "not kept, nor are its images" in printed
    assert engine.conversations[1] == [
        {"role": "user", "content": [{"type": "text", "text": "two"}]}
    ]


class FullDisk:
    """A file of which only the beginning is written."""

    def __init__(self, path, mode):
        with open(path, mode) as file:
            file.write(b"{")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, data):
        raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_no_part_of_a_conversation(talk, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    printed = talk(Engine(), "one", "/save a.json")
    assert "No space left" in printed and not (tmp_path / "a.json").exists()


def test_a_closed_input_has_ended(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    TerminalChat(Engine()).run()


def test_completion_with_libedit(talk, monkeypatch):
    bound = []
    readline = Mock(__doc__="like libedit", parse_and_bind=bound.append)
    readline.get_current_history_length.return_value = 0
    monkeypatch.setattr("dl_techniques.serving.terminal_input.readline", readline)
    talk(Engine())
    assert bound == ["bind ^I rl_complete"]


@pytest.mark.parametrize("end", ["control-D", "/quit", "hang-up"])
def test_the_end(checkpoint, running, end):
    """Whatever it is, the history of both chats stays."""
    lines = [f"/set top_p 0.{number}{len(end)}" for number in (8, 9)]
    say(running, lines[0])
    with started(checkpoint) as chat:
        say(chat, lines[1])
        if end == "hang-up":
            chat.process.send_signal(signal.SIGHUP)
        else:
            chat.send("\x04" if end == "control-D" else "/quit\n")
            chat.expect(pexpect.EOF)
        assert chat.process.wait(60) == (-signal.SIGHUP if end == "hang-up" else 0)
    say(running, "/set top_p 1")
    history = checkpoint / "state" / "dl_techniques" / "chat_history"
    assert {*lines, "/set top_p 1"} <= {*history.read_text().splitlines()}
    assert history.stat().st_mode & 0o077 == 0


def test_the_history_stays_short(checkpoint, terminal):
    history = checkpoint / "state" / "dl_techniques" / "chat_history"
    with history.open("a") as file:
        file.writelines(f"{number}\n" for number in range(1200))
    say(terminal, "/help")
    lines = history.read_text().splitlines()
    assert len(lines) == 1000 and lines[-2:] == ["1199", "/help"]
    assert history.stat().st_mode & 0o077 == 0
