"""The web page in a real browser, before a server that answers what the test wants."""

import base64
import io
import json
import threading

import pytest
from browser import CHROMIUM
from PIL import Image
from playwright import sync_api

pytestmark = [pytest.mark.browser, pytest.mark.no_backend]

ANSWER = """# Two *things*

- a **red** `square`
  - small
- <img src=x onerror=alert(1)> <script>alert(1)</script>

1. [link](https://example.org/a) [bad](javascript:alert(1)) ![pixel](http://evil.example/p.png)

| a | b |
|---|---|
| 1 | 2 |

> quoted

```html
<b onclick=alert(1)>
```
"""


class Model:
    """What the server says: an answer in pieces, each of which may wait for `more`."""

    def __init__(self):
        self.answer, self.bodies, self.status = "yes", [], 200
        self.more = threading.Semaphore(10**6)

    def pieces(self):
        for start in range(0, len(self.answer), 7):
            self.more.acquire(timeout=20)
            delta = {"content": self.answer[start : start + 7]}
            yield f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n"
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
    app.get("/v1/models")(lambda: {"data": [{"id": "tiny"}]})

    async def complete(request: Request):
        model.bodies.append(await request.json())
        if model.status != 200:
            error = {"error": {"message": "No room."}}
            return JSONResponse(error, model.status, {"Retry-After": "7"})
        return StreamingResponse(model.pieces(), media_type="text/event-stream")

    async def attention(request: Request):
        model.bodies.append(await request.json())
        tile = "data:image/png;base64," + base64.b64encode(png()).decode()
        return {"images": [{"share": 0.256, "tiles": [tile, tile]}]}

    app.post("/v1/chat/completions", response_model=None)(complete)
    app.post("/attention", response_model=None)(attention)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
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
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page, problems = context.new_page(), []
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda m: m.type == "error" and "429" not in m.text and problems.append(m.text)
    )
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("http://127.0.0.1", "data:", "blob:"))
            or problems.append(request.url)
        ),
    )
    page.goto(address)
    yield page
    assert problems == []
    context.close()


def png(colour="red", size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    sync_api.expect(page.locator(".message.assistant .actions:visible")).to_have_count(count)


def test_markdown_becomes_nodes_and_nothing_runs(page, model):
    model.answer = ANSWER
    ask(page, "what?")
    answered(page)
    body = page.locator(".assistant .body")
    assert body.locator("h2 em").inner_text() == "things"
    assert body.locator("ul ul li").inner_text() == "small"
    assert body.locator("li strong").inner_text() == "red"
    assert body.locator("td").all_inner_texts() == ["1", "2"]
    assert body.locator("pre").inner_text() == "<b onclick=alert(1)>"
    links = body.locator("a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/a",
        "http://evil.example/p.png",
    ]
    assert body.locator("img, script, [onclick], [onerror]").count() == 0
    assert "<script>alert(1)</script>" in body.inner_text()


def test_images_by_button_drop_and_paste(page, model):
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png()}
    page.locator("#files").set_input_files([file, file])
    data = base64.b64encode(png("blue")).decode()
    for event in ("drop", "paste"):
        page.evaluate(
            """([name, data]) => {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                const files = new DataTransfer();
                files.items.add(new File([bytes], "b.png", { type: "image/png" }));
                document.dispatchEvent(name === "drop"
                    ? new DragEvent("drop", { dataTransfer: files, bubbles: true })
                    : new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
            }""",
            [event, data],
        )
    sync_api.expect(page.locator("#pending img")).to_have_count(4)
    page.get_by_label("Remove image").first.click()
    ask(page, "which?")
    answered(page)
    (message,) = model.bodies[-1]["messages"]
    urls = [part["image_url"]["url"] for part in message["content"][:-1]]
    expected = [base64.b64encode(png(c)).decode() for c in ("red", "blue", "blue")]
    assert [url.partition(",")[2] for url in urls] == expected
    assert message["content"][-1] == {"type": "text", "text": "which?"}
    assert page.locator(".user .thumbs img").count() == 3


def test_where_the_answer_looked(page, model):
    ask(page, "no image")
    answered(page)
    assert page.get_by_role("button", name="Where it looked").count() == 0
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png()}
    page.locator("#files").set_input_files(file)
    ask(page, "which?")
    answered(page, 2)
    button = page.get_by_role("button", name="Where it looked")
    button.click()
    sync_api.expect(page.locator(".looked figcaption")).to_have_text(
        "Image 1: 26 % of the attention"
    )
    assert page.locator(".looked img").count() == 2
    messages = model.bodies[-1]["messages"]
    assert list(model.bodies[-1]) == ["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"][0]["type"] == "image_url"
    button.click()
    sync_api.expect(page.locator(".looked")).to_have_count(0)


def test_large_images_are_scaled_down(page, model):
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(size=(3000, 1500))}
    page.locator("#files").set_input_files(file)
    sync_api.expect(page.locator("#pending img")).to_have_count(1)
    ask(page, "?")
    answered(page)
    url = model.bodies[-1]["messages"][0]["content"][0]["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert image.size == (2048, 1024) and image.format == "JPEG"


def test_stop_keeps_what_was_said(page, model):
    model.answer, model.more = "word " * 100, threading.Semaphore(3)
    ask(page, "go on")
    sync_api.expect(page.locator(".assistant .body")).to_contain_text("word word")
    page.keyboard.press("Escape")
    answered(page)
    assert page.locator("#status").inner_text() == "Stopped."
    model.more.release(10**6)
    assert page.locator(".assistant .body").inner_text().startswith("word word")


def test_regenerate_edit_and_settings(page, model):
    ask(page, "first")
    answered(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Instructions").fill("be brief")
    page.get_by_role("button", name="Done").click()
    model.answer = "no"
    page.get_by_role("button", name="Regenerate").click()
    sync_api.expect(page.locator(".assistant .body")).to_have_text("no")
    body = model.bodies[-1]
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body["seed"], body["model"]) == (0.7, 5, "tiny")
    ask(page, "second")
    answered(page, 2)
    assert [m["content"] for m in model.bodies[-1]["messages"]] == [
        *("be brief", "first", "no", "second")
    ]
    page.get_by_role("button", name="Edit").first.click()
    assert page.get_by_label("Message").input_value() == "first"
    ask(page, "other")
    answered(page, 1)
    assert [m["content"] for m in model.bodies[-1]["messages"]] == ["be brief", "other"]


def test_conversations_are_kept_and_deleted(page, model):
    ask(page, "remember this")
    answered(page)
    page.get_by_role("button", name="New conversation").click()
    sync_api.expect(page.locator(".message")).to_have_count(0)
    page.reload()
    page.locator("#list").get_by_role("button", name="remember this").first.click()
    assert page.locator(".message.assistant .body").inner_text() == "yes"
    page.evaluate("window.confirm = () => true")
    page.get_by_label("Delete remember this").click()
    sync_api.expect(page.locator("#list li")).to_have_count(0)


def test_errors_are_told_and_can_be_tried_again(page, model):
    model.status = 429
    ask(page, "what?")
    sync_api.expect(page.locator("#status")).to_have_text("No room. Try again in 7 s.")
    model.status = 200
    page.get_by_role("button", name="Answer").click()
    answered(page)
    assert len(model.bodies[-1]["messages"]) == 1
