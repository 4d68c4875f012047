"""What OpenAI's clients send beside the question: nulls, old answers, limits, and what is wrong."""

import pytest
from http_questions import body, client_of, complete, error_of, question
from tiny_chat import picture, png

from dl_techniques.serving.engine import ServingEngine


@pytest.fixture(scope="module")
def client(engine):
    return client_of(engine)


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def image_part(**image_url):
    return {"type": "image_url", "image_url": image_url}


def test_null_is_what_is_not_set(client):
    names = ("temperature", "top_p", "n", "stream", "logprobs", "top_k", "min_p", "ignore_eos")
    names += ("repetition_penalty", "tools", "tool_choice", "logit_bias", "store", "stop", "seed")
    unset = dict.fromkeys(names) | {"messages": [question("same?")], "top_k": 1}
    assert text_of(client.post("/v1/chat/completions", json=body(**unset))) == text_of(
        complete(client, question("same?"))
    )
    error = error_of(complete(client, {"role": "user", "content": None}), 400)
    assert error["param"] == "messages.0.content"


def test_what_asks_for_nothing_is_taken(client):
    nothing = {"tools": [], "tool_choice": "none", "logit_bias": {}, "store": False, "top_k": -1}
    assert text_of(complete(client, metadata={"a": "b"}, **nothing)) == text_of(complete(client))


def test_answers_as_they_came_can_be_sent_again(client):
    said = {"role": "assistant", "content": "abc"}
    dumped = {**said, "refusal": None, "annotations": None, "audio": None, "tool_calls": None}
    rest = {"role": "user", "content": "and?", "name": "Ann"}
    texts = {text_of(complete(client, question("?"), old, rest)) for old in (said, dumped)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("content", "place", "wanted"),
    [
        (5, "messages.0.content", "string"),
        ([{"type": "text", "text": 5}], "messages.0.content.0.text", "string"),
        ([{"type": "text"}], "messages.0.content.0.text", "required"),
        ([{"type": "text", "text": "", "x": 1}], "messages.0.content.0.x", "not permitted"),
        ([{"type": "image_url", "image_url": ""}], "messages.0.content.0.image_url", "dictionary"),
        ([image_part(url="", detail="x")], "messages.0.content.0.image_url.detail", "'low'"),
        ([{"type": "input_image"}], "messages.0.content.0", "'text' or 'image_url'"),
        ([{"text": "x"}], "messages.0.content.0", "'text' or 'image_url'"),
        ([5], "messages.0.content.0", "'text' or 'image_url'"),
    ],
)
def test_what_is_wrong_is_told_where_it_is(client, content, place, wanted):
    error = error_of(complete(client, {"role": "user", "content": content}), 400)
    assert error["param"] == place
    assert error["message"].startswith(f"{place}: ") and wanted in error["message"]


def test_other_places(client):
    for options, place in (
        ({"stop": ["a", 5]}, "stop.1"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"n": True}, "n"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ):
        assert error_of(complete(client, **options), 400)["param"] == place
    missing = {name: value for name, value in body().items() if name != "model"}
    assert error_of(client.post("/v1/chat/completions", json=missing), 400)["param"] == "model"


def test_limits_are_told_by_their_names(client, chat):
    for name in ("max_tokens", "max_completion_tokens"):
        error = error_of(complete(client, **{"max_tokens": None, name: 65}), 400)
        assert error["param"] == name
        assert error["message"] == f"{name}=65 is more than the 64 allowed here."
    error = error_of(complete(client, question("x" * 300)), 400)
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    error = error_of(complete(client, stream_options={"include_usage": True}), 400)
    assert error["param"] == "stream_options"
    engine = ServingEngine(chat, 2, max_waiting=8, max_per_client=2, max_new_tokens=64)
    try:
        few = client_of(engine)
        assert error_of(complete(few, n=3), 400)["param"] == "n"
        assert len(complete(few, n=2).json()["choices"]) == 2
    finally:
        engine.close()


def test_the_largest_seed(client):
    answers = [complete(client, seed=2**63 - 1, n=n, temperature=1).json() for n in (1, 2)]
    assert answers[0]["choices"][0] == answers[1]["choices"][0]


def test_one_model(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/tiny").json() == card
    for name in ("other", "owner/other"):
        assert error_of(client.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"


def test_errors_are_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    for methods in paths.values():
        for route in methods.values():
            assert "422" not in route["responses"] and "4XX" in route["responses"]


def test_an_image_behind_its_question_is_the_clients_order(client, chat):
    asked = question("what?", png(picture(4)))
    turned = {**asked, "content": asked["content"][::-1]}
    tokens = [complete(client, q).json()["usage"]["prompt_tokens"] for q in (asked, turned)]
    assert tokens[0] == tokens[1]
