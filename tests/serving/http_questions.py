"""Questions over HTTP, and what tests of the server share."""

import base64

from fastapi.testclient import TestClient

from dl_techniques.serving.app import create_app
from dl_techniques.serving.settings import ServerSettings

NEW = 12
SETTINGS = ServerSettings("tiny", max_body_bytes=60_000, max_pixels=4096, max_images=3)


def client_of(engine, settings=SETTINGS, **options):
    """Return a client of an app whose engine stays when it ends."""
    app = create_app(engine, settings, warm_up=False)
    app.state.ready.set()
    return TestClient(app, "http://localhost", raise_server_exceptions=False, **options)


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def question(text="what?", *images):
    parts = [{"type": "image_url", "image_url": {"url": uri(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(*messages, **options):
    return {
        "model": "tiny",
        "messages": list(messages) or [question()],
        "max_tokens": NEW,
        "temperature": 0,
        **options,
    }


def complete(client, *messages, **options):
    return client.post("/v1/chat/completions", json=body(*messages, **options))


def error_of(response, status):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return response.json()["error"]
