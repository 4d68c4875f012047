"""One model and one engine that the tests of serving share, so that little is compiled."""

import math
import threading

import pytest
from tiny_chat import chat_model
from waiting import ROWS

from dl_techniques.serving.engine import ServingEngine

# Held while the shared engine takes a turn, of which the last goes on after the last answer.
BETWEEN_TURNS = threading.Lock()


@pytest.fixture(scope="session")
def chat():
    """A model with a processor; do not change it."""
    return chat_model()


@pytest.fixture(scope="session")
def engine(chat):
    """An engine of 3 rows; leave it without requests."""
    engine = ServingEngine(chat, ROWS, max_waiting=8, max_per_client=6, max_new_tokens=64)
    turn = engine._turn

    def turn_alone():
        with BETWEEN_TURNS:
            turn()

    engine._turn = turn_alone
    yield engine
    engine.close()


@pytest.fixture
def held(engine, monkeypatch):
    """Hold the engine before its next step: () -> lets it go on."""
    gate, turn = threading.Event(), engine._turn

    def held_turn():
        assert gate.wait(60)
        turn()

    with BETWEEN_TURNS:
        monkeypatch.setattr(engine, "_turn", held_turn)
    yield gate.set
    gate.set()


@pytest.fixture(autouse=True)
def any_speed(monkeypatch):
    """Who is read together does not depend on how fast the machine is."""
    monkeypatch.setattr("dl_techniques.serving.engine.READ_SECONDS", math.inf)
