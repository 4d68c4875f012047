"""The chat page in a real browser, before a server that answers what the test wants."""

import base64
import io
import json
import threading

import pytest
from browser import CHROMIUM
from PIL import Image
from playwright import sync_api

# Browsers on busy machines take their time.
sync_api.expect.set_options(timeout=60_000)


class Model:
    """What the server says: an answer in pieces, each of which may wait for `more`."""

    def __init__(self):
        self.answer, self.bodies, self.status = "yes", [], 200
        self.key, self.name, self.finish_reason, self.breaks = None, "tiny", "stop", False
        self.more = threading.Semaphore(10**6)

    def pieces(self):
        def line(choice):
            return f"data: {json.dumps({'choices': [choice]})}\n\n"

        for start in range(0, len(self.answer), 7):
            self.more.acquire(timeout=120)
            yield line({"delta": {"content": self.answer[start : start + 7]}})
        if self.breaks:
            raise ConnectionError("The server falls over.")
        yield line({"delta": {}, "finish_reason": self.finish_reason})
        yield "data: [DONE]\n\n"


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def address(model):
    """A server of the page, without a model."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse

    from dl_techniques.serving.pages import CHAT_PAGE, page_response

    app = FastAPI()
    page = CHAT_PAGE.read_text(encoding="utf-8")
    app.get("/", response_model=None)(lambda: page_response(page))

    def refusal(request):
        if model.key and request.headers.get("authorization") != f"Bearer {model.key}":
            return JSONResponse({"error": {"message": "No such key."}}, 401)
        return None

    def models(request: Request):
        return refusal(request) or {"data": [{"id": model.name}]}

    async def complete(request: Request):
        body = await request.json()
        model.bodies.append(body)
        refused, status = refusal(request), model.status
        if body["model"] != model.name:
            status = 404
        if status != 200:
            error = {"error": {"message": "No room."}}
            refused = JSONResponse(error, status, {"Retry-After": "7"} if status == 429 else {})
        return refused or StreamingResponse(model.pieces(), media_type="text/event-stream")

    async def attention(request: Request):
        model.bodies.append(await request.json())
        tile = "data:image/png;base64," + base64.b64encode(png()).decode()
        return {"images": [{"share": 0.256, "tiles": [tile, tile]}]}

    app.get("/v1/models", response_model=None)(models)
    app.post("/v1/chat/completions", response_model=None)(complete)
    app.post("/attention", response_model=None)(attention)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, model):
    """The page, new; whatever it loads from elsewhere or complains about is an error."""
    model.__init__()
    context, problems = browser.new_context(), []
    context.set_default_timeout(60_000)

    def watch(page):
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: is_complaint(m) and problems.append(m.text))
        page.on("request", lambda r: is_own(r.url) or problems.append(r.url))

    context.on("page", watch)
    page = context.new_page()
    page.goto(address)
    sync_api.expect(page.locator("#title")).to_have_text("tiny")
    yield page
    model.more.release(10**6)
    assert problems == []
    context.close()


def is_complaint(message):
    """What the tests have the server answer is no complaint of the page."""
    return message.type == "error" and "Failed to load resource" not in message.text


def is_own(url):
    return url.startswith(("http://127.0.0.1", "data:", "blob:"))


def png(colour="red", size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def attach(page, *images, name="a.png", kind="image/png"):
    files = [{"name": name, "mimeType": kind, "buffer": image} for image in images]
    page.locator("#files").set_input_files(files)


def sent_images(model):
    """The images of the last message that was sent, as bytes."""
    parts = model.bodies[-1]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    sync_api.expect(page.locator(".message.assistant .actions:visible")).to_have_count(count)


def texts(page):
    return page.locator(".message .body").all_inner_texts()


def held(page, model, count, answer="word " * 60):
    """Ask a question of whose answer only the first pieces come."""
    model.answer, model.more = answer, threading.Semaphore(count)
    ask(page, "question")
    if count:
        sync_api.expect(page.locator(".waiting .body")).to_contain_text(answer[:4])


def release(page, model, count=1):
    model.more.release(10**6)
    answered(page, count)


def focused(page):
    sync_api.expect(page.get_by_label("Message")).to_be_focused()


def status(page, text):
    sync_api.expect(page.locator("#status")).to_have_text(text)
