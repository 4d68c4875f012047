"""The web page in a real browser, before a server that answers what the test wants."""

import base64
import io
import threading

import page_browser as shared
import pytest
from page_browser import (
    answered,
    ask,
    attach,
    focused,
    held,
    png,
    release,
    sent_images,
    status,
    texts,
)
from PIL import Image
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.no_backend]
address, browser, model, page = shared.address, shared.browser, shared.model, shared.page


def test_images_by_button_drop_and_paste(page, model):
    attach(page, png(), png())
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
    expect(page.locator("#pending img")).to_have_count(4)
    page.get_by_label("Remove image").first.click()
    ask(page, "which?")
    answered(page)
    (message,) = model.bodies[-1]["messages"]
    assert sent_images(model) == [png("red"), png("blue"), png("blue")]
    assert message["content"][-1] == {"type": "text", "text": "which?"}
    assert page.locator(".user .thumbs img").count() == 3


def test_where_the_answer_looked(page, model):
    ask(page, "no image")
    answered(page)
    assert page.get_by_role("button", name="Where it looked").count() == 0
    attach(page, png())
    ask(page, "which?")
    answered(page, 2)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Instructions").fill("be brief")
    page.get_by_role("button", name="Done").click()
    button = page.get_by_role("button", name="Where it looked")
    button.click()
    expect(page.locator(".looked figcaption")).to_have_text("Image 1: 26 % of the attention")
    assert page.locator(".looked img").count() == 2
    messages = model.bodies[-1]["messages"]
    assert list(model.bodies[-1]) == ["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert messages[3]["content"][0]["type"] == "image_url"
    button.click()
    expect(page.locator(".looked")).to_have_count(0)


def test_large_images_are_scaled_down(page, model):
    attach(page, png(size=(3000, 1500)))
    expect(page.locator("#pending img")).to_have_count(1)
    ask(page, "?")
    answered(page)
    image = Image.open(io.BytesIO(sent_images(model)[0]))
    assert image.size == (2048, 1024) and image.format == "JPEG"


def test_stop_keeps_what_was_said(page, model):
    model.answer, model.more = "word " * 100, threading.Semaphore(3)
    ask(page, "go on")
    expect(page.locator(".assistant .body")).to_contain_text("word word")
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
    expect(page.locator(".assistant .body")).to_have_text("no")
    answered(page)
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


def test_errors_are_told_and_can_be_tried_again(page, model):
    model.status = 429
    ask(page, "what?")
    expect(page.locator("#status")).to_have_text("No room. Try again in 7 s.")
    model.status = 200
    page.get_by_role("button", name="Answer").click()
    answered(page)
    assert len(model.bodies[-1]["messages"]) == 1
    model.status = 413
    ask(page, "and this?")
    expect(page.locator("#status")).to_contain_text("Start a new conversation, or edit")


def test_the_key_is_asked_for_and_nothing_else_is_lost(page, model):
    model.key = "secret"
    page.reload()
    for reason, key in (("asks for an", "no"), ("does not accept this", "secret")):
        expect(page.get_by_role("alert")).to_have_text(f"The server {reason} API key.")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    ask(page, "what?")
    answered(page)
    assert (model.bodies[-1]["temperature"], model.bodies[-1]["top_p"]) == (0.2, 1)
    model.key = "other"
    ask(page, "and now?")
    expect(page.get_by_role("alert")).to_have_text("The server does not accept this API key.")


def test_settings_are_kept_by_done_only_if_valid(page, model):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("3")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Seed")).to_have_value("")
    page.get_by_label("Top p").fill("")
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_label("Top p").fill("0.123")
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    ask(page, "what?")
    answered(page)
    assert model.bodies[-1]["top_p"] == 0.123 and "seed" not in model.bodies[-1]


def test_an_answer_stays_if_there_is_no_other(page, model):
    ask(page, "what?")
    answered(page)
    model.status = 500
    page.get_by_role("button", name="Regenerate").click()
    status(page, "No room.")
    assert texts(page) == ["what?", "yes"]
    model.status, model.more = 200, threading.Semaphore(0)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    answered(page)
    page.reload()
    expect(page.locator(".message .body")).to_have_text(["what?", "yes"])


def test_images_that_load_are_waited_for(page, model):
    page.evaluate(
        """() => {
            window.load = createImageBitmap;
            window.createImageBitmap = async (file) => {
                await new Promise((resolve) => { window.go = resolve; });
                if (file.name === "b.png") throw new Error();
                return load(file);
            };
        }"""
    )
    attach(page, png())
    expect(page.locator("#pending .loading")).to_have_count(1)
    ask(page, "which?")
    assert page.locator(".message").count() == 0
    page.evaluate("go()")
    answered(page)
    assert sent_images(model) == [png()]
    attach(page, png(), name="b.png")
    ask(page, "and this?")
    page.evaluate("go()")
    status(page, "b.png is not an image that can be read.")
    expect(page.locator("#pending .item")).to_have_count(0)
    expect(page.get_by_label("Message")).to_have_value("and this?")
    assert page.locator(".message").count() == 2
    page.evaluate("() => { window.createImageBitmap = load; }")
    attach(page, b"%PDF", name="notes.pdf", kind="application/pdf")
    status(page, "notes.pdf is not an image that can be read.")


def test_images_are_numbered_and_can_be_removed_by_keys(page):
    attach(page, png(), png())
    expect(page.get_by_alt_text("Image 2")).to_be_visible()
    page.get_by_label("Remove image 1").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Remove image 1")).to_be_focused()
    page.keyboard.press("Enter")
    focused(page)


def test_transparent_becomes_white(page, model):
    attach(page, png((0, 0, 0, 0), (2100, 30)))
    ask(page, "?")
    answered(page)
    assert min(Image.open(io.BytesIO(sent_images(model)[0])).getpixel((9, 9))) > 250


@pytest.mark.parametrize("types", [["text/plain", "Files"], ["Files"]])
def test_text_is_pasted_and_dropped_as_text(page, types):
    """Excel and Word give a picture of the text beside it."""
    taken = page.evaluate(
        """([types, data]) => ["paste", "drop"].map((name) => {
            const all = new DataTransfer();
            if (types.includes("text/plain")) all.setData("text/plain", "a\\tb");
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const isTaken = types.includes("Files") && !(name === "drop" && types.length > 1);
            if (isTaken) all.items.add(new File([bytes], "a.png", { type: "image/png" }));
            const properties = { bubbles: true, cancelable: true };
            return !document.getElementById("text").dispatchEvent(name === "drop"
                ? new DragEvent("drop", { dataTransfer: all, ...properties })
                : new ClipboardEvent("paste", { clipboardData: all, ...properties }));
        })""",
        [types, base64.b64encode(png()).decode()],
    )
    assert taken == [len(types) == 1] * 2


def test_a_double_click_on_send_stops_nothing(page, model):
    model.answer, model.more = "word " * 30, threading.Semaphore(2)
    page.get_by_label("Message").fill("what?")
    page.get_by_role("button", name="Send").dblclick()
    expect(page.locator(".waiting .body")).to_contain_text("word")
    release(page, model)
    assert page.locator(".ending").count() == 0
    focused(page)
    held(page, model, 1)
    page.wait_for_timeout(600)  # As long as a click may be the second of a double one.
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".ending")).to_have_text("Stopped.")
    focused(page)


def test_the_log_stays_where_the_reader_is(page, model):
    held(page, model, 40, "line\n\n" * 80)
    log = page.locator("#log")
    expect(page.locator(".waiting p")).to_have_count(47)
    # Within some frames the log follows what is new.
    page.wait_for_function(
        "() => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight < 5"
    )
    log.evaluate("(log) => { log.scrollTop = 50; }")
    page.wait_for_timeout(100)
    release(page, model)
    assert log.evaluate("(log) => log.scrollTop") == 50


def test_what_is_shown_stays_when_more_comes(page, model):
    attach(page, png())
    ask(page, "which?")
    answered(page)
    page.get_by_role("button", name="Where it looked").click()
    expect(page.locator(".looked")).to_have_count(1)
    held(page, model, 3, "first\n\nsecond one\n\n" + "word " * 60)
    log = page.locator("#log")
    expect(log).to_have_attribute("aria-busy", "true")
    assert page.locator("#status").inner_text() == "Answering \u2026"
    first = page.locator(".waiting .body > p").first.element_handle()
    for name in ("Edit", "Answer", "Regenerate"):
        assert page.get_by_role("button", name=name, exact=True).count() == 0
    release(page, model, 2)
    assert first.evaluate("(node) => node.isConnected")
    expect(log).to_have_attribute("aria-busy", "false")
    assert page.locator(".looked").count() == 1
    assert page.get_by_role("button", name="Regenerate").count() == 1


def test_a_server_that_is_away_can_come_back_with_another_model(page, model):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "what?")
    status(page, "The server cannot be reached: try again when it runs.")
    page.unroute("**/v1/chat/completions")
    model.name = "other"
    page.get_by_role("button", name="Answer").click()
    answered(page)
    assert model.bodies[-1]["model"] == "other"


def test_keys_while_composing_are_left_alone(page, model):
    press = """([key, keyCode]) => document.getElementById("text").dispatchEvent(
        new KeyboardEvent("keydown", { key, keyCode, bubbles: true, cancelable: true }))"""
    page.get_by_label("Message").fill("nihon")
    page.evaluate(press, ["Enter", 229])
    assert page.locator(".message").count() == 0
    held(page, model, 1)
    page.evaluate(press, ["Escape", 229])
    release(page, model)
    assert page.locator(".ending").count() == 0


def test_a_refused_clipboard_is_told(page):
    ask(page, "what?")
    answered(page)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    page.get_by_role("button", name="Copy").first.click()
    status(page, "The browser refused to copy.")
