"""Prompts are read beside the decoding of others, and whoever is read may leave."""

import threading

import pytest
from tiny_chat import user
from waiting import idle, wait_until

from dl_techniques.serving import reader
from dl_techniques.serving.requests import ChatRequest, FailedError, TimedOutError

NEW = 12


class Gate:
    """Holds whoever passes, from `shut` to `open`."""

    def __init__(self):
        self._is_open, self._somebody_waits = threading.Event(), threading.Event()
        self.open()

    def open(self):
        self._is_open.set()

    def shut(self):
        self._is_open.clear()
        self._somebody_waits.clear()

    def wait_for_somebody(self):
        assert self._somebody_waits.wait(60)

    def go_through(self):
        self._somebody_waits.set()
        assert self._is_open.wait(60)


@pytest.fixture
def gate(monkeypatch):
    """What all prompts go through before they are read."""
    gate, prompt_batch = Gate(), reader.prompt_batch

    def gated(*args):
        gate.go_through()
        return prompt_batch(*args)

    monkeypatch.setattr(reader, "prompt_batch", gated)
    yield gate
    gate.open()


def ask(engine, text, new=NEW):
    return engine.submit(ChatRequest([user(text)], new, ignore_eos=True, client=text))


def answering(engine, text):
    """Return a request that has its first token, and the rest of its events."""
    ticket = ask(engine, text, 60)
    events = iter(ticket)
    next(events)
    return ticket, events


def reading(engine, gate, text):
    """Return a request that is being read, until the gate opens."""
    gate.shut()
    ticket = ask(engine, text)
    gate.wait_for_somebody()
    return ticket


def alone(model, ticket):
    return model.generate(ticket.request.messages, NEW, stop_ids=())


def is_empty(engine):
    idle(engine)
    wait_until(lambda: not (engine._batch.seats or engine._reader.rows or engine._queue._running))
    return True


def test_answers_go_on_while_a_prompt_is_read(engine, chat, gate):
    other, events = answering(engine, "goes on")
    ticket = reading(engine, gate, "is read meanwhile")
    list(events)
    assert other.new_tokens == 60 and ticket.first is None
    gate.open()
    assert ticket.result() == alone(chat, ticket)
    assert is_empty(engine)


def test_those_who_come_meanwhile_are_read_together(engine, chat, gate):
    tickets = [reading(engine, gate, "first")]
    tickets += [ask(engine, text) for text in ("then", "those")]
    assert engine.stats()["waiting"] == 2
    prefills = chat.generation_stats()["requests"]
    gate.open()
    texts = [ticket.result() for ticket in tickets]
    assert chat.generation_stats()["requests"] == prefills + 2
    assert texts == [alone(chat, ticket) for ticket in tickets]


@pytest.mark.parametrize("way", ["cancelled", "timed out"])
def test_leaving_while_ones_prompt_is_read(engine, gate, monkeypatch, way):
    before = engine.stats()[{"cancelled": "cancelled", "timed out": "failed"}[way]]
    _, events = answering(engine, f"goes on beside one that is {way}")
    ticket = reading(engine, gate, f"is read and {way}")
    if way == "cancelled":
        ticket.cancel()
        assert [event.finish_reason for event in ticket] == ["cancelled"]
        list(events)
        assert engine.stats()["cancelled"] == before + 1
    else:
        monkeypatch.setattr(engine, "timeout", 0.0)
        for news in (ticket, events):
            with pytest.raises(TimedOutError):
                list(news)
        assert engine.stats()["failed"] == before + 2
    gate.open()
    assert is_empty(engine)


def test_an_error_of_one_who_has_left_is_nobodys(engine, gate, monkeypatch):
    _, events = answering(engine, "goes on beside an error")
    ticket = reading(engine, gate, "leaves before the error")
    monkeypatch.setattr(reader, "choose_first", lambda *args: 1 / 0)
    ticket.cancel()
    assert [event.finish_reason for event in ticket] == ["cancelled"]
    before = engine.stats()["failed"]
    gate.open()
    list(events)
    assert is_empty(engine) and engine.stats()["failed"] == before


def test_a_failed_step_forgets_what_is_read(engine, gate, monkeypatch):
    _, events = answering(engine, "fails")
    ticket = reading(engine, gate, "is read when another fails")
    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "advance", lambda: 1 / 0)
        for news in (events, ticket):
            with pytest.raises(FailedError):
                list(news)
    gate.open()
    assert isinstance(ask(engine, "after the failure").result(), str)
    assert is_empty(engine)
