"""The HTTP server: OpenAI's interface, the guide's, and what is refused."""

import base64
import io
import json
import struct
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from http_questions import NEW, body, client_of, complete, error_of, question
from PIL import Image
from tiny_chat import picture, png, user
from waiting import idle, wait_until

from dl_techniques.generation import Sampler
from dl_techniques.generation.prompts import read_prompt
from dl_techniques.serving.failures import RefusedError
from dl_techniques.serving.requests import FullError
from dl_techniques.serving.settings import ServerSettings
from dl_techniques.serving.uploads import UploadStore
from dl_techniques.visualization.image_attention import image_attention


@pytest.fixture(scope="module")
def client(engine):
    return client_of(engine)


def test_an_answer_is_that_of_generate(client, chat, engine):
    image = png(picture(5))
    response = complete(client, question("what?", image), logprobs=True)
    idle(engine)
    answer = response.json()
    text, logprobs = chat.generate([user("what?", image)], NEW, return_logprobs=True)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    content = choice["logprobs"]["content"]
    got = [entry["logprob"] for entry in content]
    np.testing.assert_allclose(got, logprobs[0, : len(got)], atol=1e-5)
    said = b"".join(bytes(entry["bytes"] or []) for entry in content)
    assert said.decode().strip() == text
    assert choice["finish_reason"] == ("stop" if len(content) < NEW else "length")
    usage = answer["usage"]
    prompt = len(chat.processor.encode_prompt([user("what?", image)]).token_ids)
    assert usage["prompt_tokens"] == prompt and answer["object"] == "chat.completion"
    assert usage["total_tokens"] == prompt + usage["completion_tokens"]


def test_the_likeliest_tokens_of_each_step(client, chat):
    special = chat.processor.tokenizer.special_tokens
    answer = complete(client, logprobs=True, top_logprobs=2).json()
    content = answer["choices"][0]["logprobs"]["content"]
    for entry in content:
        likeliest, second = entry.pop("top_logprobs")
        assert likeliest == entry and second["logprob"] <= likeliest["logprob"]
        encoded = None if second["token"] in special else list(second["token"].encode())
        assert second["bytes"] == encoded
    assert content


def test_special_tokens_are_told_by_their_spelling(client, chat):
    names = chat.processor.tokenizer.special_tokens
    answer = complete(client, logprobs=True, top_logprobs=20, ignore_eos=True, max_tokens=64).json()
    steps = answer["choices"][0]["logprobs"]["content"]
    told = [other for step in steps for other in step["top_logprobs"]]
    special = [other for other in told if other["bytes"] is None]
    assert special and {other["token"] for other in special} <= {*names}
    assert all(list(o["token"].encode()) == o["bytes"] for o in told if o not in special)


def test_an_answer_of_a_known_length(client):
    answer = complete(client, ignore_eos=True, max_tokens=9, logprobs=True).json()
    assert answer["usage"]["completion_tokens"] == 9
    assert len(answer["choices"][0]["logprobs"]["content"]) == 9


def test_sampling_with_seeds_and_several_answers(client, chat, engine):
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 9, "seed": 4, "n": 2}
    response = complete(client, **options).json()
    idle(engine)
    sampler = Sampler(temperature=1.5, top_p=0.9, top_k=9)
    expected = chat.generate([[user("what?")]] * 2, NEW, sampler, seed=4)
    assert [c["message"]["content"] for c in response["choices"]] == expected
    assert [c["index"] for c in response["choices"]] == [0, 1]
    assert complete(client, **options).json()["choices"] == response["choices"]


def test_a_stream_is_the_answer_in_pieces(client):
    options = {"n": 2, "logprobs": True, "seed": 1, "temperature": 1.0}
    whole = complete(client, **options).json()
    stream = complete(client, stream=True, stream_options={"include_usage": True}, **options)
    assert stream.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in stream.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == {
        **whole["usage"],
        "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"],
    }
    for choice in whole["choices"]:
        own = [c for k in chunks for c in k["choices"] if c["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(c["delta"].get("content", "") for c in own)
        assert text == choice["message"]["content"]
        said = [e for c in own if c["logprobs"] for e in c["logprobs"]["content"]]
        expected = choice["logprobs"]["content"]
        # The second request reads one token after a kept prefix: the same sums in another order.
        assert [e.pop("logprob") for e in said] == pytest.approx(
            [e.pop("logprob") for e in expected], abs=1e-5
        )
        assert said == expected
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_stop_strings(client):
    text = complete(client).json()["choices"][0]["message"]["content"]
    choice = complete(client, stop=text[4:6]).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(text[4:6])].rstrip()
    assert choice["finish_reason"] == "stop"


def test_models_and_status(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    vision = client.get("/vision").json()
    assert vision["encoder"] == "SigLIPVisionTransformer" and vision["tokens_per_image"] == 4
    assert vision["cache"]["max_bytes"] > 0
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    client.app.state.ready.clear()
    assert client.get("/ready").status_code == 503
    client.app.state.ready.set()


def test_upload_and_chat(client, chat, engine):
    image = png(picture(8))
    uploaded = client.post("/upload_image", files={"file": ("../../x.png", image)}).json()
    response = client.post("/chat", json={"message": "what?", **uploaded}).json()
    idle(engine)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}]
    assert response == {"response": chat.generate(messages, engine.max_new_tokens)}
    alone = client.post("/chat", json={"message": "what?"}).json()["response"]
    idle(engine)
    assert alone == chat.generate([user("what?")], engine.max_new_tokens)
    for image_id in ("none", "../../../etc/passwd", "/etc/passwd"):
        refused = client.post("/chat", json={"message": "what?", "image_id": image_id})
        assert error_of(refused, 404)["code"] == "image_not_found"


def test_where_an_answer_looked(client, chat, engine):
    answer = "abc"
    asked = question("what?", png(picture(8)), png(picture(9)))
    said = {"role": "assistant", "content": answer}
    images = client.post("/attention", json={"messages": [asked, said]}).json()["images"]
    idle(engine)
    prompt = read_prompt(chat.processor, [user("what?", picture(8), picture(9))])
    pixels = chat.processor.image_processor.normalize(np.stack([picture(8), picture(9)]))
    ids = [*prompt.ids, *map(ord, " " + answer)]
    shares = image_attention(chat, {"text_tokens": [ids], "images": pixels[None]})
    shares = shares[len(prompt.ids) - 1 : len(ids) - 1].mean(axis=0).sum(axis=(1, 2))
    np.testing.assert_allclose([image["share"] for image in images], shares, rtol=1e-4)
    for image in images:
        (tile,) = image["tiles"]
        data = base64.b64decode(tile.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).size == (224, 224)
    bad = [[asked], [user("what?"), said], [question("a" * 300, png(picture(8))), said], [said]]
    for messages in bad:
        error_of(client.post("/attention", json={"messages": messages}), 400)
    assert complete(client, asked).status_code == 200


def bomb():
    """Return a small PNG file that says it has 50,000 x 50,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def encoded(size, form):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bomb(), "image_too_large"),
        (encoded((65, 64), "PNG"), "image_too_large"),
        (encoded((9, 9), "PPM"), "invalid_image"),
        (encoded((9, 9), "EPS"), "invalid_image"),
        (png(picture(0))[:70], "invalid_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image"),
        (b"", "invalid_image"),
    ],
    ids=["bomb", "large", "ppm", "eps", "truncated", "svg", "empty"],
)
def test_bad_images(client, data, code):
    assert error_of(complete(client, question("?", data)), 400)["code"] == code
    assert error_of(client.post("/upload_image", files={"file": data}), 400)["code"] == code


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,A=A",
    ],
)
def test_no_url_is_fetched_and_no_file_read(client, url):
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    assert error_of(complete(client, message), 400)["code"].startswith("invalid_image")


@pytest.mark.parametrize(
    ("options", "status", "wanted"),
    [
        ({"model": "gpt"}, 404, "no model 'gpt'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "messages.0"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},)
        + (400, "nothing to answer"),
        (
            {"messages": [question("?", *[png(picture(0))] * 4)]},
            400,
            "4 images are more than the 3",
        ),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 65}, 400, "more than the 64 allowed"),
        ({"messages": [question("x" * 300)]}, 400, "max_positions=256"),
        ({"n": 5}, 400, "n=5"),
        ({"stop": ["a"] * 5}, 400, "at most 4"),
        ({"stop": ""}, 400, "none empty"),
        ({"seed": -1}, 400, "seed"),
        ({"tools": [{"type": "function"}]}, 400, "tools: "),
        ({"top_logprobs": 3}, 400, "top_logprobs needs logprobs=true"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty"),
    ],
)
def test_bad_requests(client, options, status, wanted):
    error = error_of(client.post("/v1/chat/completions", json=body(**options)), status)
    assert wanted in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_bodies_that_are_no_request(client):
    for content in (b"", b"{", b"[]", b"\xff"):
        headers = {"content-type": "application/json"}
        response = client.post("/v1/chat/completions", content=content, headers=headers)
        error_of(response, 400)
    error_of(client.get("/nothing"), 404)
    error_of(client.get("/chat"), 405)
    error_of(client.post("/upload_image", files={"other": b"x"}), 400)


def test_bodies_that_are_too_long(client):
    error_of(complete(client, question("x" * 70_000)), 413)

    def parts():
        for _ in range(8):
            yield b"x" * 10_000

    for path in ("/v1/chat/completions", "/upload_image"):
        headers = {"content-type": "multipart/form-data; boundary=x" if "up" in path else "a/json"}
        assert client.post(path, content=parts(), headers=headers).status_code in (400, 413)


def test_full_is_429_with_retry_after(client, engine, held):
    def fill():
        complete(client, max_tokens=2)

    threads = [threading.Thread(target=fill) for _ in range(6)]
    [thread.start() for thread in threads]
    wait_until(lambda: engine.stats()["waiting"] == 6)
    response = complete(client)
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1
    # Of several answers none is begun if one has no place.
    error_of(complete(client, n=2), 429)
    held()
    [thread.join() for thread in threads]
    idle(engine)


def test_time_out_and_failure(client, engine, held, monkeypatch):
    monkeypatch.setattr(engine, "timeout", 1e-9)
    held()
    assert error_of(complete(client), 504)["type"] == "timeout_error"
    stream = complete(client, stream=True).text
    assert '"type":"timeout_error"' in stream and "[DONE]" not in stream
    monkeypatch.setattr(engine, "timeout", 60)

    def fails():
        raise RuntimeError("secret")

    monkeypatch.setattr(engine._batch, "advance", fails)
    response = complete(client)
    assert error_of(response, 500)["type"] == "server_error" and "secret" not in response.text


def test_unexpected_errors_tell_nothing(client, monkeypatch):
    def fails():
        raise RuntimeError("secret /path/of/a/file")

    monkeypatch.setattr(client.app.state.uploads, "get", fails)
    response = client.post("/chat", json={"message": "x", "image_id": "y"})
    assert "secret" not in response.text and "Traceback" not in response.text
    error_of(response, 500)


def test_api_keys(engine):
    client = client_of(engine, ServerSettings("tiny", api_keys=("right", "of words")))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic right"}):
        for path in ("/v1/models", "/vision", "/metrics", "/attention"):
            response = client.get(path, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
        assert client.get(path).status_code == 200
    for key in ("right", "of words"):
        headers = {"authorization": f"Bearer {key}"}
        assert client.get("/v1/models", headers=headers).status_code == 200
    assert "right" not in repr(client.app.state.settings)


def test_a_client_is_an_address_and_a_key_that_is_asked_for(engine, caplog):
    def names(settings):
        caplog.clear()
        client = client_of(engine, settings)
        with caplog.at_level("INFO", "dl_techniques"):
            for key in ("Bearer one", "bearer one", "Bearer   one ", "Bearer two"):
                client.get("/v1/models", headers={"authorization": key})
        return {json.loads(record.message)["client"] for record in caplog.records}

    assert len(names(ServerSettings("tiny"))) == 1
    assert len(names(ServerSettings("tiny", api_keys=("one", "two")))) == 2


def test_foreign_hosts_and_pages(engine):
    hosts = ("LocalHost:80", "::1")
    client = client_of(engine, ServerSettings("tiny", allowed_hosts=hosts))
    assert client.get("/health", headers={"host": "localhost:8000"}).status_code == 200
    assert client.get("/health", headers={"host": "[::1]:8000"}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", ""):
        assert client.get("/health", headers={"host": host}).status_code == 403
    for origin in ("http://evil.example", "null", "http://localhost.evil"):
        response = client.post("/chat", json={"message": "x"}, headers={"origin": origin})
        assert error_of(response, 403)["code"] == "cross_origin"
    own = client.get("/vision", headers={"origin": "http://localhost"})
    assert own.status_code == 200


def test_security_headers(client):
    for response in (
        client.get("/"),
        client.get("/vision"),
        client.get("/no"),
        client.get("/docs"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        page = client.get(path).text
        assert "src=" not in page and "@import" not in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    docs = client.get("/docs").text
    for route in ("/v1/chat/completions", "/upload_image", "/vision", "/metrics"):
        assert route in docs and route in client.get("/openapi.json").json()["paths"]


def test_metrics(client, engine):
    def value(name):
        lines = client.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith(name + " ")]
        return float(line.split()[1])

    before = value("dl_techniques_new_tokens_total")
    seconds = value("dl_techniques_decode_seconds_total")
    complete(client, stop=None)
    idle(engine)
    assert value("dl_techniques_new_tokens_total") > before
    assert value("dl_techniques_decode_seconds_total") > seconds
    assert value("dl_techniques_running") == 0
    text = client.get("/metrics").text
    assert 'http_requests_total{path="/v1/chat/completions",status="200"}' in text
    client.get("/some/secret")
    assert "secret" not in client.get("/metrics").text


def test_the_log_has_no_contents(client, caplog):
    with caplog.at_level("INFO", "dl_techniques"):
        complete(client, question("a secret question"))
        client.get("/v1/models?key=secret")
        client.get("/secret")
    # TensorFlow may tell of programs that it makes anew.
    own = [record for record in caplog.records if record.name.startswith("dl_techniques")]
    lines = [json.loads(record.message) for record in own]
    assert [line["path"] for line in lines] == ["/v1/chat/completions", "/v1/models", "other"]
    assert lines[0]["new_tokens"] >= 1 and lines[0]["status"] == 200
    assert "secret" not in caplog.text and "testclient" not in caplog.text


def test_uploads_have_an_end(monkeypatch):
    clock = [0.0]
    own_time = SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr("dl_techniques.serving.uploads.time", own_time)
    store = UploadStore(10, 60)
    first, second = store.put(b"12345"), store.put(b"6789")
    with pytest.raises(FullError) as error:
        store.put(b"xx")
    assert error.value.retry_after == 60
    clock[0] = 59
    assert store.get(first) == b"12345"
    clock[0] = 61
    with pytest.raises(RefusedError, match="no image of this image_id"):
        store.get(second)
    assert not any(store.folder.iterdir())
    store.close()
    assert not store.folder.exists()
    folder = UploadStore(10, 60).folder
    assert not folder.exists()  # Nobody has the store any more.


def test_an_upload_that_does_not_fit_on_the_disk_leaves_nothing(monkeypatch):
    store, write = UploadStore(10, 60), Path.write_bytes

    def full(path, data):
        write(path, data[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            store.put(b"12345")
    assert not any(store.folder.iterdir())
    assert store.get(store.put(b"0123456789")) == b"0123456789"
    store.close()


def test_wrong_settings():
    with pytest.raises(ValueError, match="max_pixels=0 must be at least 1"):
        ServerSettings("x", max_pixels=0)
    for host in (":80", "https://x", "", "[::1"):
        with pytest.raises(ValueError, match="is no name of a host"):
            ServerSettings("x", allowed_hosts=(host,))
    for key in ("", " a", "a\n", "schlüssel", "\udcff"):
        with pytest.raises(ValueError, match="key must be printable ASCII"):
            ServerSettings("x", api_keys=(key,))
