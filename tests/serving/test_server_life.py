"""How a server begins and ends, with questions on their way."""

import contextlib
import http.client
import json
import threading
import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from http_questions import SETTINGS, body, complete, error_of
from tiny_chat import picture, png
from waiting import ROWS, wait_until

from dl_techniques.generation.rolling_batch import RollingBatch
from dl_techniques.serving import listening, reader
from dl_techniques.serving.app import create_app
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.listening import Server, bound_socket, url_of


@pytest.fixture
def engine(chat):
    """An engine of one's own."""
    engine = ServingEngine(chat, ROWS, max_per_client=6, max_new_tokens=64)
    yield engine
    engine.close()


class WarmUp:
    """Takes the place of an engine's warm-up, which goes on until it is told to end."""

    def __init__(self, error=None):
        self.begun, self.over, self._error = threading.Event(), threading.Event(), error

    def __call__(self):
        self.begun.set()
        assert self.over.wait(60)
        if self._error is not None:
            raise self._error


def asked(client, **options):
    """Ask in a thread of its own; return the thread and the list that will hold the response."""
    responses = []
    thread = threading.Thread(target=lambda: responses.append(complete(client, **options)))
    thread.start()
    return thread, responses


def test_its_life(engine):
    app = create_app(engine, SETTINGS)
    assert not app.state.ready.is_set()
    with TestClient(app, "http://localhost") as client:
        wait_until(app.state.ready.is_set, 300)
        assert client.get("/ready").status_code == client.get("/health").status_code == 200
        assert not any(engine.stats()[name] for name in ("requests", "new_tokens", "stop"))
        name = client.post("/upload_image", files={"file": png(picture(1))}).json()["image_id"]
        (file,) = app.state.uploads.folder.iterdir()
        assert file.name == name and file.parent.stat().st_mode & 0o077 == 0
    assert not engine.is_alive
    assert not app.state.uploads.folder.exists()


def test_questions_wait_until_programs_are_compiled(engine, monkeypatch):
    warm_up = WarmUp()
    monkeypatch.setattr(engine, "warm_up", warm_up)
    app = create_app(engine, SETTINGS)
    with TestClient(app, "http://localhost") as client:
        thread, responses = asked(client)
        wait_until(lambda: app.state.unready == 1)
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert engine.stats()["requests"] == 0 and not responses
        warm_up.over.set()
        thread.join(60)
        assert responses[0].status_code == 200
        assert client.get("/ready").status_code == 200


def test_no_more_wait_for_programs_than_may_wait_for_their_turn(chat, monkeypatch):
    engine, warm_up = ServingEngine(chat, ROWS, max_waiting=1, max_new_tokens=64), WarmUp()
    monkeypatch.setattr(engine, "warm_up", warm_up)
    app = create_app(engine, SETTINGS)
    with TestClient(app, "http://localhost") as client:
        thread, responses = asked(client)
        wait_until(lambda: app.state.unready == 1)
        error_of(complete(client), 429)
        warm_up.over.set()
        thread.join(60)
        assert responses[0].status_code == 200
        assert app.state.unready == 0
        assert complete(client).status_code == 200


def test_an_end_before_it_is_ready(engine):
    with TestClient(create_app(engine, SETTINGS), "http://localhost"):
        began = time.monotonic()
    assert time.monotonic() - began < 120 and not engine.is_alive


def test_a_model_that_cannot_answer(engine, monkeypatch, caplog):
    warm_up, gave_up = WarmUp(RuntimeError("out of memory")), []
    monkeypatch.setattr(engine, "warm_up", warm_up)
    app = create_app(engine, SETTINGS, give_up=lambda: gave_up.append(True))
    with TestClient(app, "http://localhost") as client:
        thread, responses = asked(client)
        wait_until(lambda: app.state.unready == 1)
        warm_up.over.set()
        thread.join(60)
        assert error_of(responses[0], 503)["message"] == "The server is shutting down."
        wait_until(lambda: gave_up)
        assert client.get("/health").status_code == client.get("/ready").status_code == 503
    assert str(app.state.failure) == "out of memory" and "out of memory" in caplog.text


@contextlib.contextmanager
def serving(engine):
    """Give the server of an engine, and its address."""
    app = create_app(engine, SETTINGS, warm_up=False)
    with bound_socket("127.0.0.1", 0) as bound:
        server, address = Server(app, engine.close), url_of(bound)
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield server, address
        finally:
            server.end()
            thread.join(60)
        assert not thread.is_alive()


def post(address, **options):
    """Return the text of an answer."""
    headers = {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body(**options)), headers)
        return connection.getresponse().read().decode()


def test_who_waits_at_the_end_is_told(engine, monkeypatch):
    monkeypatch.setattr(listening, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(listening, "CUT_SECONDS", 60)
    monkeypatch.setattr(RollingBatch, "advance", lambda batch, steps: time.sleep(0.01))
    texts = []
    with serving(engine) as (server, address):

        def ask(stream):
            texts.append(post(address, stream=stream))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        [thread.start() for thread in threads]
        wait_until(lambda: engine.stats()["running"] == 2)
        server.end()
        [thread.join(30) for thread in threads]
    plain, stream = sorted(texts, key=lambda text: text.startswith("data: "))
    assert json.loads(plain)["error"]["message"] == "The server is shutting down."
    last = stream.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "server_error"


def test_who_is_read_at_the_end_is_told(engine, monkeypatch):
    monkeypatch.setattr(listening, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(listening, "CUT_SECONDS", 60)
    over, prompt_batch, texts = threading.Event(), reader.prompt_batch, []

    def slow(*args):
        assert over.wait(60)
        return prompt_batch(*args)

    monkeypatch.setattr(reader, "prompt_batch", slow)
    with serving(engine) as (server, address):
        thread = threading.Thread(target=lambda: texts.append(post(address)))
        thread.start()
        wait_until(lambda: engine.stats()["running"] == 1)
        server.end()
        thread.join(30)
        assert json.loads(texts[0])["error"]["message"] == "The server is shutting down."
        over.set()


def test_answers_on_their_way_are_finished(engine, monkeypatch):
    monkeypatch.setattr(listening, "ANSWER_SECONDS", 120)
    monkeypatch.setattr(listening, "CUT_SECONDS", 120)
    advance = RollingBatch.advance

    def slow(batch, steps):
        time.sleep(0.02)
        advance(batch, 1)

    monkeypatch.setattr(RollingBatch, "advance", slow)
    texts = []
    with serving(engine) as (server, address):

        def ask():
            texts.append(post(address, max_tokens=40, ignore_eos=True))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: engine.stats()["running"] == 1)
        server.end()
        thread.join(120)
    assert json.loads(texts[0])["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize(
    ("name", "url"),
    [(("127.0.0.1", 80), "http://127.0.0.1:80"), (("::1", 80, 0, 0), "http://[::1]:80")],
)
def test_addresses(name, url):
    assert url_of(SimpleNamespace(getsockname=lambda: name)) == url


def test_a_bound_port_is_nobody_elses():
    with bound_socket("localhost", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        bound.listen()
        with pytest.raises(OSError, match="Cannot listen at 127.0.0.1, port .*: Address already"):
            bound_socket("127.0.0.1", bound.getsockname()[1])
