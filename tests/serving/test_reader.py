"""Prompts are read beside the decoding of others, and whoever is read may leave."""

import contextlib
import itertools
import threading
import time

import pytest
from only_on import only_on
from tiny_chat import user
from waiting import idle, wait_until

from dl_techniques.generation.backends import Programs
from dl_techniques.generation.rolling_batch import RollingBatch
from dl_techniques.serving import reader
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.requests import ChatRequest, FailedError, TimedOutError

NEW = 12


class Gate:
    """Holds whoever passes, from `shut` to `open`.

    Attributes:
        passed_by: The names of threads.
    """

    def __init__(self):
        self._is_open, self._somebody_waits = threading.Event(), threading.Event()
        self.passed_by = []
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
        gate.passed_by.append(threading.current_thread().name)
        gate.go_through()
        return prompt_batch(*args)

    monkeypatch.setattr(reader, "prompt_batch", gated)
    yield gate
    gate.open()


def ask(engine, text):
    return engine.submit(ChatRequest([user(text)], NEW, ignore_eos=True, client=text))


@pytest.fixture
def pause(monkeypatch):
    """While this is on, turns decode nothing."""
    with monkeypatch.context() as patch:

        def switch(on):
            patch.undo()
            if on:
                patch.setattr(RollingBatch, "advance", lambda batch, steps: time.sleep(0.01))

        yield switch


def answering(engine, pause, text):
    """Return a request that has its first token, and the rest of its events; nothing goes on."""
    pause(True)
    ticket = ask(engine, text)
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
    wait_until(lambda: not (engine._reader.rows or engine._batch.seats), 10)
    return not engine._queue._running


def test_answers_go_on_while_a_prompt_is_read(engine, chat, gate, pause):
    other, events = answering(engine, pause, "goes on")
    ticket = reading(engine, gate, "is read meanwhile")
    pause(False)
    list(events)
    assert other.new_tokens == NEW and ticket.first is None
    # Only who keeps nobody waiting is read by the thread that decodes.
    assert gate.passed_by == ["serving-engine", "serving-reader_0"]
    gate.open()
    assert ticket.result() == alone(chat, ticket)
    assert is_empty(engine)


@only_on("jax")  # Elsewhere a call returns when its steps are done.
def test_a_first_token_does_not_wait_for_the_next(engine, chat, monkeypatch):
    gate, collect = Gate(), RollingBatch.collect

    def gated(batch):
        if batch._on_their_way is not None:
            gate.go_through()
        collect(batch)

    monkeypatch.setattr(RollingBatch, "collect", gated)
    gate.shut()
    ticket = ask(engine, "waits for its second token")
    events = iter(ticket)
    first = next(events)
    assert len(first.ids) == 1 and ticket.first is not None
    gate.open()
    rest = list(events)
    assert first.text + "".join(event.text for event in rest) == alone(chat, ticket)


def test_those_who_come_meanwhile_are_read_together(chat, gate):
    with contextlib.closing(ServingEngine(chat, rows=8)) as engine:
        tickets = [reading(engine, gate, "first")]
        tickets += [ask(engine, text) for text in ("then", "those", "three")]
        time.sleep(0.1)
        assert engine.stats()["waiting"] == 3
        reads = chat.generation_stats()["requests"]
        gate.open()
        texts = [ticket.result() for ticket in tickets]
    assert chat.generation_stats()["requests"] == reads + 2
    assert texts == [alone(chat, ticket) for ticket in tickets]


def test_as_many_as_are_read_begin_meanwhile(chat, gate, pause):
    with contextlib.closing(ServingEngine(chat, rows=8)) as engine:
        _, events = answering(engine, pause, "goes on")
        gate.shut()
        with engine._condition:
            tickets = [ask(engine, text) for text in ("read", "all", "of us")]
        gate.wait_for_somebody()
        for text, waiting in (("one", 1), ("two", 2), ("three", 0), ("four", 1)):
            tickets.append(ask(engine, text))
            time.sleep(0.1)
            wait_until(lambda waiting=waiting: engine.stats()["waiting"] == waiting, 10)
        gate.open()
        pause(False)
        list(events)
        texts = [ticket.result() for ticket in tickets]
        assert texts == [alone(chat, ticket) for ticket in tickets]


def test_slow_prompts_are_read_a_few_at_a_time(chat, monkeypatch):
    prompt_batch, groups = reader.prompt_batch, []

    def slow(engine, model, parts, *args):
        groups.append(len(parts))
        time.sleep(0.02 * len(parts))
        return prompt_batch(engine, model, parts, *args)

    def groups_of(texts):
        groups.clear()
        with engine._condition:
            tickets = [ask(engine, text) for text in texts]
        assert [ticket.result() for ticket in tickets] == [alone(chat, t) for t in tickets]
        return groups[:]

    monkeypatch.setattr(reader, "prompt_batch", slow)
    with contextlib.closing(ServingEngine(chat, rows=8)) as engine:
        groups_of("abcd")  # Compiles.
        monkeypatch.setattr("dl_techniques.serving.engine.READ_SECONDS", 60.0)
        assert [groups_of("efgh"), groups_of("ijkl")] == [[4], [4]]
        monkeypatch.setattr("dl_techniques.serving.engine.READ_SECONDS", 0.03)
        assert groups_of("mnop") == [1] * 4


@pytest.mark.parametrize("compiles", [True, False])
def test_what_compiles_tells_nothing_of_how_long_it_takes(engine, monkeypatch, compiles):
    prompt_batch = reader.prompt_batch

    def slow(*args):
        time.sleep(0.3)
        return prompt_batch(*args)

    for _ in range(2):
        ask(engine, "read fast").result()
    before = engine._reader.position_seconds
    monkeypatch.setattr(reader, "prompt_batch", slow)
    if compiles:
        numbers = itertools.count()
        monkeypatch.setattr(Programs, "compilations", property(lambda programs: next(numbers)))
    ask(engine, "read slow").result()
    idle(engine)
    assert (engine._reader.position_seconds == before) == compiles


def test_nobody_reads_beside_the_reader(engine, chat, gate, pause):
    other, events = answering(engine, pause, "leaves")
    tickets = [reading(engine, gate, "is read alone")]
    other.cancel()
    list(events)
    pause(False)
    tickets.append(ask(engine, "comes when nothing is decoded"))
    wait_until(lambda: engine.stats()["waiting"] == 0, 10)
    gate.open()
    assert [ticket.result() for ticket in tickets] == [alone(chat, ticket) for ticket in tickets]
    assert gate.passed_by == ["serving-engine", "serving-reader_0", "serving-reader_0"]


@pytest.mark.parametrize("way", ["cancelled", "timed out"])
def test_leaving_while_ones_prompt_is_read(engine, gate, pause, monkeypatch, way):
    _, events = answering(engine, pause, f"goes on beside one that is {way}")
    ticket = reading(engine, gate, f"is read and {way}")
    before = engine.stats()
    if way == "cancelled":
        ticket.cancel()
        assert [event.finish_reason for event in ticket] == ["cancelled"]
        assert engine.stats()["cancelled"] == before["cancelled"] + 1
    else:
        monkeypatch.setattr(engine, "timeout", 0.0)
        for news in (ticket, events):
            with pytest.raises(TimedOutError):
                list(news)
        assert engine.stats()["failed"] == before["failed"] + 2
    gate.open()
    pause(False)
    list(events)
    assert is_empty(engine)


def test_an_error_of_one_who_has_left_is_nobodys(engine, gate, pause, monkeypatch):
    _, events = answering(engine, pause, "goes on beside an error")
    ticket = reading(engine, gate, "leaves before the error")
    monkeypatch.setattr(reader, "choose_first", lambda *args: 1 / 0)
    ticket.cancel()
    assert [event.finish_reason for event in ticket] == ["cancelled"]
    before = engine.stats()["failed"]
    gate.open()
    pause(False)
    list(events)
    assert is_empty(engine) and engine.stats()["failed"] == before


def test_a_failed_step_also_ends_what_is_read(engine, gate, pause, monkeypatch):
    _, events = answering(engine, pause, "fails")
    ticket = reading(engine, gate, "is read when another fails")
    with monkeypatch.context() as patch:
        patch.setattr(RollingBatch, "advance", lambda batch, steps: 1 / 0)
        for news in (events, ticket):
            with pytest.raises(FailedError):
                list(news)
    pause(False)
    gate.open()
    assert isinstance(ask(engine, "after the failure").result(), str)
    assert is_empty(engine)
