"""What the web page keeps in the browser: conversations, drafts, and all that was not kept yet."""

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
    status,
    texts,
)
from playwright.sync_api import expect
from waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.no_backend]
address, browser, model, page = shared.address, shared.browser, shared.model, shared.page


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
