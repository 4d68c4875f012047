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
from waiting import wait_until

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


def test_conversations_are_kept_and_deleted(page, model):
    ask(page, "remember this")
    answered(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    page.reload()
    page.locator("#list").get_by_role("button", name="remember this").first.click()
    assert page.locator(".message.assistant .body").inner_text() == "yes"
    page.evaluate("window.confirm = () => true")
    page.get_by_label("Delete remember this").click()
    expect(page.locator("#list li")).to_have_count(0)


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


def test_tabs_share_their_conversations(page, model, address):
    other = page.context.new_page()
    other.goto(address)
    ask(page, "one")
    answered(page)
    other.locator("#list").get_by_role("button", name="one").first.click()
    expect(other.locator(".message .body")).to_have_text(["one", "yes"])
    ask(page, "two")
    expect(other.locator(".message .body")).to_have_text(["one", "yes", "two", "yes"])
    # Both go on with it at the same time: nothing is lost.
    page.bring_to_front()
    held(page, model, 1)
    ask(other, "three")
    model.more.release(10**6)
    for tab in (page, other):
        answered(tab, 3)
    for tab in (page, other):
        tab.wait_for_function("() => unsaved.length === 0")
    expect(page.locator("#list li")).to_have_count(2)
    found = []
    for index in (0, 1):
        entry = page.locator("#list li button:first-child").nth(index)
        entry.click()
        expect(entry).to_have_attribute("aria-current", "true")
        found += texts(page)
    assert {"question", "three"} <= set(found)


def test_the_list_may_be_read_anew_while_a_button_is_pressed(page, model):
    ask(page, "one")
    answered(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    page.evaluate("showList()")
    page.locator("#list li button").first.hover()
    page.mouse.down()
    page.evaluate("showList()")
    page.mouse.up()
    expect(page.locator(".message .body")).to_have_text(["one", "yes"])


def test_what_is_deleted_stays_deleted(page, model, address):
    other = page.context.new_page()
    other.goto(address)
    held(page, model, 1)
    other.evaluate("window.confirm = () => true")
    other.get_by_label("Delete question").click()
    expect(page.locator(".message")).to_have_count(0)
    model.more.release(10**6)
    ask(page, "another")
    answered(page)
    for tab in (page, other):
        expect(tab.locator("#list li")).to_have_count(1)
    other.get_by_label("Delete another").focus()
    other.keyboard.press("Enter")
    expect(other.locator("#list li")).to_have_count(0)
    focused(other)


def test_a_click_on_the_open_conversation_changes_nothing(page, model):
    held(page, model, 2)
    open_one = page.locator("#list [aria-current]")
    assert int(open_one.evaluate("(node) => getComputedStyle(node).fontWeight")) >= 600
    open_one.click()
    release(page, model)
    assert len(texts(page)[1]) > 250


@pytest.mark.parametrize("broken", ["all", "settings", "full"])
def test_storage_may_fail(page, model, broken):
    page.add_init_script(
        {
            "settings": "localStorage.settings = '{';",
            "full": "IDBObjectStore.prototype.put = () => { throw new Error('disk full'); };",
            "all": """for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
                Object.defineProperty(window, name, { get() { throw new Error("denied"); } });
            }""",
        }[broken]
    )
    page.reload()
    ask(page, "what?")
    answered(page)
    reason = {"all": "denied", "full": "disk full", "settings": None}[broken]
    status(page, f"This conversation could not be kept: {reason}" if reason else "")


def test_conversations_of_the_first_version_are_kept(page, address):
    page.goto(f"{address}/v1/models")
    page.evaluate(
        """() => new Promise((resolve, reject) => {
            indexedDB.deleteDatabase("dl_techniques_chat");
            const request = indexedDB.open("dl_techniques_chat", 1);
            const name = "conversations";
            request.onupgradeneeded = () => request.result
                .createObjectStore(name, { keyPath: "id" })
                .put({ id: "a", title: "old", time: 5, messages: [{ role: "user", text: "hi" }] });
            request.onsuccess = () => { request.result.close(); resolve(); };
            request.onerror = reject;
        })"""
    )
    page.goto(address)
    page.locator("#list").get_by_role("button", name="old").first.click()
    expect(page.locator(".message .body")).to_have_text(["hi"])
    page.get_by_role("button", name="Answer").click()
    answered(page)


def test_the_list_reads_no_pictures(page, address):
    attach(page, png())
    ask(page, "what?")
    answered(page)
    other = page.context.new_page()
    other.add_init_script(
        """for (const name of ["getAll", "get", "openCursor"]) {
            IDBObjectStore.prototype[name] = () => { throw new Error(name); };
        }"""
    )
    other.goto(address)
    expect(other.locator("#list li")).to_have_count(1)


def test_answers_that_fail_at_once_make_no_second_conversation(page, model):
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('offline')); }")
    for count, text in enumerate(("one", "two", "three"), 1):
        ask(page, text)
        expect(page.locator(".message .body")).to_have_count(count)
        expect(page.locator("#status")).to_contain_text("cannot be reached")
    expect(page.locator("#list li")).to_have_count(1)
    page.reload()
    expect(page.locator(".message .body")).to_have_text(["one", "two", "three"])


def test_a_page_left_before_a_question_is_kept_keeps_it(page, model):
    never = "() => { saving = new Promise(() => {}); }"
    page.evaluate(never)
    held(page, model, 0)
    expect(page.locator(".waiting")).to_have_count(1)
    page.reload()
    expect(page.locator(".message .body")).to_have_text(["question"])
    model.answer = "yes"
    model.more.release(10**6)
    page.get_by_role("button", name="Answer").click()
    answered(page)
    page.evaluate(never)
    ask(page, "another")
    answered(page, 2)
    page.reload()
    expect(page.locator(".message .body")).to_have_text(["question", "yes", "another", "yes"])
    expect(page.locator("#list li")).to_have_count(1)
    assert page.evaluate("() => Object.keys(localStorage)") == []


def test_a_page_left_with_more_than_fits_elsewhere(page, model):
    ask(page, "one")
    answered(page)
    page.evaluate("() => { saving = new Promise(() => {}); keep = () => false; }")
    ask(page, "another")
    answered(page, 2)
    page.evaluate("() => window.dispatchEvent(new Event('pagehide'))")
    count = "async () => (await read(chat.id)).messages.length"
    wait_until(lambda: page.evaluate(count) == 4)


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


def test_endings_are_kept_with_the_answer(page, model):
    model.finish_reason = "length"
    ask(page, "one")
    answered(page)
    model.breaks = True
    held(page, model, 1)
    release(page, model, 2)
    status(page, "The connection was lost.")
    page.reload()
    expect(page.locator(".ending")).to_have_text(
        ["The longest answer allowed was reached.", "Cut off: the connection was lost."]
    )


def test_drafts_wait(page, model):
    message = page.get_by_label("Message")
    ask(page, "what?")
    answered(page)
    message.fill("half a")
    attach(page, png())
    expect(page.locator("#pending img")).to_have_count(1)
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Cancel editing").click()
    expect(message).to_have_value("half a")
    page.get_by_role("button", name="New conversation").click()
    expect(message).to_have_value("")
    message.fill("other")
    page.locator("#list li button").first.click()
    expect(message).to_have_value("half a")
    assert page.locator("#pending img").count() == 1
    page.reload()
    expect(message).to_have_value("half a")
    expect(page.locator(".message .body")).to_have_text(["what?", "yes"])


def test_leaving_the_page_keeps_what_was_answered(page, model, address):
    held(page, model, 3)
    expect(page.locator(".waiting .body")).to_contain_text("word word")
    page.goto(f"{address}/v1/models")
    page.go_back()
    expect(page.locator(".message .body").nth(1)).to_contain_text("word word")
    expect(page.locator(".ending")).to_contain_text("Cut off")


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
