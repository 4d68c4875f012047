"""The chat at a real pseudo-terminal."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time

import keras
import numpy as np
import pexpect
import pytest
from pexpect import fdpexpect
from PIL import Image
from tiny_chat import LETTERS, chat_model

pytestmark = pytest.mark.no_backend

PROMPT = "> "
# Every step takes a while, so that there is time to stop an answer.
PROGRAM = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # Background jobs ignore it.
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
    child.expect_exact(PROMPT)
    assert "readline:" not in child.before  # It complains of what it does not know.
    yield child
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
        ("/set seed -1", "seed=-1 must be at least 0"),
        ("/nothing", "There is no command /nothing"),
        ("/image", "Which?"),
        ("/image none.png", "none.png' does not exist"),
    ):
        assert message in say(terminal, wrong)


def test_an_answer_with_its_speed(terminal):
    answer = say(terminal, "what is it?")
    assert re.search(r"[a-z]{20}\s+20 tokens, [\d.]+ tokens/s", answer)


def test_conversation_with_images_by_path_and_by_completed_command(terminal, checkpoint):
    assert "[my picture.png: 30 x 20]" in say(terminal, r"see my\ picture.png what is it?")
    terminal.send("/image my\t")
    terminal.expect_exact(r"my\ picture.png ")
    terminal.sendline("")
    terminal.expect_exact("[my picture.png: 30 x 20]")
    terminal.expect_exact(PROMPT)
    assert re.search(r"\d+ tokens", say(terminal, "and here?"))
    assert "messages written" in say(terminal, "/save saved.json")
    messages = json.loads((checkpoint / "saved.json").read_text())["messages"]
    images = [p for m in messages[::2] for p in m["content"] if p["type"] == "image"]
    assert [image["image"] for image in images] == ["my picture.png"] * 2
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


def test_the_end(checkpoint):
    with started(checkpoint) as chat:
        say(chat, "/help")
        chat.send("\x04")
        chat.expect(pexpect.EOF)
        assert chat.process.wait(60) == 0
    history = checkpoint / "state" / "dl_techniques" / "chat_history"
    assert "/help" in history.read_text() and history.stat().st_mode & 0o077 == 0
