"""A real server on a real port: OpenAI's own client, and clients that leave."""

import base64
import http.client
import json
import threading
import time

import openai
import pytest
from live_server import served
from tiny_chat import picture, png, user
from waiting import idle, wait_until

from dl_techniques.generation.rolling_batch import RollingBatch
from dl_techniques.serving.app import create_app
from dl_techniques.serving.settings import ServerSettings

NEW = 12


@pytest.fixture(scope="module")
def port(engine):
    """The port of a server whose engine stays when it ends."""
    with served(create_app(engine, ServerSettings("tiny", ("key",)), warm_up=False)) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    address = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=address, api_key="key", max_retries=0) as client:
        yield client


def ask(client, image=None, **options):
    content = [{"type": "text", "text": "what?"}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    options = {"max_tokens": NEW, "temperature": 0, **options}
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_an_answer_about_an_image(client, chat, engine):
    image = png(picture(2))
    completion = ask(client, image, logprobs=True)
    idle(engine)
    expected = chat.generate([user("what?", image)], NEW)
    assert completion.choices[0].message.content == expected
    content = completion.choices[0].logprobs.content
    assert len(content) <= completion.usage.completion_tokens <= NEW
    assert all(
        entry.logprob <= 0 and bytes(entry.bytes).decode() == entry.token for entry in content
    )


def test_a_stream(client):
    options = {"seed": 3, "temperature": 1.2, "n": 2}
    whole = ask(client, **options)
    texts = ["", ""]
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens


def test_models_and_errors(client, port):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        ask(client, max_tokens=-1)
    with pytest.raises(openai.NotFoundError, match="only 'tiny'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])
    stranger = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="no", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="API key"):
        stranger.models.list()


def test_a_full_server_asks_for_patience(client, engine, held):
    threads = [threading.Thread(target=ask, args=(client,)) for _ in range(6)]
    [thread.start() for thread in threads]
    wait_until(lambda: engine.stats()["waiting"] == 6)
    with pytest.raises(openai.RateLimitError) as error:
        ask(client)
    assert int(error.value.response.headers["retry-after"]) >= 1
    held()
    [thread.join() for thread in threads]


def connected(port, stream):
    """Return a connection on which a long answer is asked for."""
    body = {"model": "tiny", "messages": [user("what?")], "max_tokens": 64, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    body = json.dumps(body | {"ignore_eos": True})
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_it_is_answered(engine, port, monkeypatch, stream):
    monkeypatch.setattr(RollingBatch, "advance", lambda batch, steps: time.sleep(0.01))
    before = engine.stats()["cancelled"]
    connection = connected(port, stream)
    wait_until(lambda: engine._batch.seats)
    connection.close()
    idle(engine)
    assert engine.stats()["cancelled"] == before + 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_answered(engine, held, port, stream):
    before = engine.stats()["cancelled"]
    connection = connected(port, stream)
    wait_until(lambda: engine.stats()["waiting"] == 1)
    if stream:
        connection.getresponse().read(10)
    connection.close()
    (waiting,) = engine._queue._waiting.values()
    wait_until(lambda: waiting[0].ticket.cancelled)
    held()
    idle(engine)
    assert engine.stats()["cancelled"] == before + 1
