"""400 hostile requests of 20 kinds, while others are answered."""

import base64
import json
import socket
import threading
from collections import Counter

import numpy as np
import pytest
from live_server import served
from tiny_chat import picture, png, user
from waiting import idle

from dl_techniques.serving.app import create_app
from dl_techniques.serving.settings import ServerSettings
from dl_techniques.utils.resident_memory import resident_bytes

NEW, EACH = 8, 20
CHAT = "/v1/chat/completions"
MIB = 2**20


@pytest.fixture(scope="module")
def port(engine):
    settings = ServerSettings(
        "tiny",
        api_keys=("key",),
        allowed_hosts=("localhost",),
        max_body_bytes=MIB,
        max_pixels=4096,
        body_timeout=1.0,
    )
    with served(create_app(engine, settings, warm_up=False)) as port:
        yield port


def request(path=CHAT, body=b"", method="POST", **headers):
    """Return the bytes of a request."""
    known = {"Host": "localhost", "Authorization": "Bearer key", "Content-Type": "application/json"}
    known |= {"Content-Length": len(body), "Connection": "close"}
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in known.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def ask(*content, **options):
    messages = [{"role": "user", "content": list(content)}]
    body = {"model": "tiny", "messages": messages, "max_tokens": NEW, "temperature": 0}
    return json.dumps(body | options).encode()


def text(words="what?"):
    return {"type": "text", "text": words}


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def data_uri(data):
    return image("data:image/png;base64," + base64.b64encode(data).decode())


def bomb():
    """A PNG file of 1 MB in memory whose header says 60,000 x 60,000 pixels."""
    data = bytearray(png(np.zeros((9, 9, 3), np.uint8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


def upload(image_id):
    return request("/chat", json.dumps({"message": "?", "image_id": image_id}).encode())


# Name -> (the statuses that may come, the bytes that are sent one after the other).
KINDS = {
    "a bomb": ({400}, [request(body=ask(data_uri(bomb())))]),
    "a truncated image": ({400}, [request(body=ask(data_uri(png(picture(0))[:90])))]),
    "noise for an image": ({400}, [request(body=ask(data_uri(bytes(range(256)))))]),
    "a script for an image": ({400}, [request(body=ask(data_uri(b"<svg onload='alert(1)'/>")))]),
    "a URL": ({400}, [request(body=ask(image("http://169.254.169.254/latest/meta-data")))]),
    "a path": ({400}, [request(body=ask(image("file:///etc/passwd")))]),
    "a path for an upload": ({404}, [upload("../../../etc/passwd")]),
    "a path for a page": ({404}, [request("/../../etc/passwd", method="GET")]),
    "100 MB, said": ({413}, [request(Content_Length=100 * MIB), b"x" * 1000]),
    "100 MB, sent": (
        {413},
        [request(Content_Length=None, Transfer_Encoding="chunked")]
        + [b"40000\r\n" + b" " * 0x40000 + b"\r\n"] * 400,
    ),
    "deep JSON": ({400}, [request(body=b'{"messages":' + b"[" * 100_000)]),
    "wrong types": ({400}, [request(body=ask(text(), max_tokens="many", stop={"a": 1}))]),
    "no number": ({400}, [request(body=ask(text(), temperature=float("nan")))]),
    "bad UTF-8": ({400}, [request(body=b'{"model": "\xff\xfe"}')]),
    "too many tokens": ({400}, [request(body=ask(text("x" * 100_000)))]),
    "a flood of headers": ({400, 431}, [request(**{f"x{k}": "y" * 1000 for k in range(200)})]),
    "a slow body": ({408}, [request(Content_Length=900), b"{"]),
    "a wrong key": ({401}, [request(body=ask(text()), Authorization="Bearer kez")]),
    "another host": ({403}, [request(body=ask(text()), Host="evil.example")]),
    "another's page": ({403}, [request(body=ask(text()), Origin="http://evil.example")]),
}


def answer_of(port, pieces, timeout=30):
    """Return (status, what follows) of an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The answer may be there already.
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:  # What was sent and never read.
            pass
    return int(received.split(None, 2)[1]) if received else None, received


def test_hostile_requests(port, chat, engine):
    plain = request(body=ask(text()))
    expected = chat.generate([user("what?")], NEW)
    assert len(KINDS) == 20
    wrong, good, over = Counter(), [], threading.Event()

    def attack(names):
        for name in names:
            allowed, pieces = KINDS[name]
            status, received = answer_of(port, pieces)
            if status not in allowed or b"Traceback" in received:
                wrong[name, status] += 1

    def friend():
        while not over.is_set() or len(good) < 5:
            status, received = answer_of(port, [plain])
            content = json.loads(received.partition(b"\r\n\r\n")[2]) if status == 200 else None
            good.append(content and content["choices"][0]["message"]["content"])

    attack(KINDS)  # Once, so that all is loaded.
    before = resident_bytes()
    names = np.random.default_rng(0).permutation(list(KINDS) * EACH).reshape(10, -1)
    attackers = [threading.Thread(target=attack, args=(part,)) for part in names.tolist()]
    friends = threading.Thread(target=friend)
    friends.start()
    [thread.start() for thread in attackers]
    [thread.join() for thread in attackers]
    over.set()
    friends.join()
    idle(engine)
    assert not wrong
    assert set(good) == {expected}
    assert resident_bytes() - before < 100 * MIB
