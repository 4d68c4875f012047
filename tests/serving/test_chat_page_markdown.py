"""What the chat page shows: Markdown as nodes, on paper, on phones, in colours one can read."""

import re

import page_browser as shared
import pytest
from page_browser import answered, ask, attach, held, png, release
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.no_backend]
address, browser, model, page = shared.address, shared.browser, shared.model, shared.page

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
SHAPES = {
    # Fences of any length and kind, with other fences, carriage returns or nothing behind them.
    "````\n```\nx\n````\nafter": "<pre><code>```\nx</code></pre><p>after</p>",
    "~~~py\r\na\r\n\r\nb\r\n~~~\r\nc": "<pre><code>a\n\nb</code></pre><p>c</p>",
    "text\n```\n  - x\n\ty": "<p>text</p><pre><code>  - x\n\ty</code></pre>",
    "1. do\n\n   ```sh\n   ls\n     -l\n   ```\n\n   more\n2. b": "<ol><li><p>do</p><pre><code>ls\n"
    "  -l</code></pre><p>more</p></li><li><p>b</p></li></ol>",
    # Lists: apart or not, numbered by themselves, nested by two columns or more.
    "1. a\n\n1. b\n\n1. c": "<ol><li><p>a</p></li><li><p>b</p></li><li><p>c</p></li></ol>",
    "1. a\n  - b\n    - c\n2. d\n   e": "<ol><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li>"
    "<li>d\ne</li></ol>",
    "- a\n\tb\nc\n\nd": "<ul><li>a\nb\nc</li></ul><p>d</p>",
    "- a\n- b\n\n* c": "<ul><li>a</li><li>b</li></ul><ul><li>c</li></ul>",
    "7. a\n8. b": '<ol start="7"><li>a</li><li>b</li></ol>',
    "- | a | b |\n  |---|---|\n  | 1 | 2 |": "<ul><li><table><tr><th>a</th><th>b</th></tr><tr>"
    "<td>1</td><td>2</td></tr></table></li></ul>",
    "It was in\n1999. A year\n1. one": "<p>It was in\n1999. A year</p><ol><li>one</li></ol>",
    # Tables: behind text, with bars in cells, aligned; only with as many columns above as below.
    "See:\n| a | b |\n|:-:|--:|\n| `x|y` | p\\|q |\nend": "<p>See:</p><table><tr><th>a</th>"
    "<th>b</th></tr><tr><td><code>x|y</code></td><td>p|q</td></tr></table><p>end</p>",
    "a | b\n---|---|---": "<p>a | b\n---|---|---</p>",
    "a | b\n-|-\n1": "<table><tr><th>a</th><th>b</th></tr></table><p>1</p>",
    # Quotes and the rest.
    "> # a\n> - b\n> > c\nd": "<blockquote><h2>a</h2><ul><li>b</li></ul><blockquote><p>c\nd</p>"
    "</blockquote></blockquote>",
    "# a #\ntext\n* * *\n####### no": "<h2>a</h2><p>text</p><hr><p>####### no</p>",
    # Inline.
    r"\*a\* \\ \q 1\. `\*`": r"<p>*a* \ \q 1. <code>\*</code></p>",
    "`` a`b `` `c` ```d": "<p><code>a`b</code> <code>c</code> ```d</p>",
    "***a*** **b *c* d** *e **f***": "<p><em><strong>a</strong></em> <strong>b <em>c</em> d"
    "</strong> <em>e <strong>f</strong></em></p>",
    "**a\nb** *c\nd*": "<p><strong>a\nb</strong> <em>c\nd</em></p>",
    "__a__ _b_ an_inner_line 2 * 3 * 4": "<p><strong>a</strong> <em>b</em> an_inner_line "
    "2 * 3 * 4</p>",
    "**2*3 = 6** ~~x~~ ~5 **open": "<p><strong>2*3 = 6</strong> <del>x</del> ~5 **open</p>",
    "&lt;b&gt; &amp;amp; &quot;&#39;&#x41;&nbsp;&no;": "<p>&lt;b&gt; &amp;amp; \"'A&nbsp;"
    "&amp;no;</p>",
    "a<br>b <b>": "<p>a\nb &lt;b&gt;</p>",
    '[w](https://e.org/a_(b) "t") [*x*](<https://e.org/c>)': "<p><a href=https://e.org/a_(b) t>w"
    "</a> <a href=https://e.org/c><em>x</em></a></p>",
    "<https://e.org> (see https://e.org/a_(b)). **https://e.org/c**": "<p><a href=https://e.org>"
    "https://e.org</a> (see <a href=https://e.org/a_(b)>https://e.org/a_(b)</a>). <strong>"
    "<a href=https://e.org/c>https://e.org/c</a></strong></p>",
    "[x](javascript:a) [y](b.html) f[0](z) <ftp://e.org>": "<p>[x](javascript:a) [y](b.html) "
    "f[0](z) &lt;ftp://e.org&gt;</p>",
    "![p](https://e.org/p.png) [https://e.org/q](https://e.org/r)": "<p><a href=https://e.org/p.png>"
    "p</a> <a href=https://e.org/r>https://e.org/q</a></p>",
}
# The nodes as text, with the attributes that say something.
WRITTEN = """(texts) => texts.map((text) => {
    const body = document.createElement("div");
    body.append(...markdown(text));
    for (const node of body.querySelectorAll("*")) {
        for (const { name } of [...node.attributes]) {
            if (!["href", "title", "start"].includes(name)) node.removeAttribute(name);
        }
        if (node.getAttribute("start") === "1") node.removeAttribute("start");
    }
    return body.innerHTML.replace(/ href="([^"]*)"/g, " href=$1").replace(/ title="(.*?)"/g, " $1");
})"""


def test_markdown_has_its_shape(page):
    texts = list(SHAPES)
    assert dict(zip(texts, page.evaluate(WRITTEN, texts), strict=True)) == SHAPES


def test_columns_are_aligned_and_text_runs_its_way(page):
    text = "|a|b|c|\n|:-|:-:|-:|\n|1|2|3|\n\nשלום\n\nhello"
    aligned, ways = page.evaluate(
        """(text) => {
            const body = document.createElement("div");
            document.body.append(body);
            body.append(...markdown(text));
            const styles = (nodes, name) => [...nodes].map((node) => getComputedStyle(node)[name]);
            const cells = body.querySelectorAll("td");
            return [styles(cells, "textAlign"), styles(body.querySelectorAll("p"), "direction")];
        }""",
        text,
    )
    assert (aligned, ways) == (["left", "center", "right"], ["rtl", "ltr"])


LONG = [
    *(mark * 5000 for mark in ("[", "*", "`", "_", "~", "![", "](", "<", "&", "\\", "|", "(")),
    *(mark * 5000 for mark in ("*a ", "a* ", "**a _b ", "[a](", "`a``b", "*[", "a_*", "~~a ")),
    *("[a](" + "(" * 5000, "https://" + ")" * 20000, "#" + " " * 20000 + "a", "- " * 5000),
    *(">" * 3000, "\n".join(" " * n + "- a" for n in range(0, 2000, 2)), "1. " * 3000),
    *("a | b\n" * 10000, "- a\n\n" * 10000, "> a\n" * 10000, "```\n" * 9999, "*a\n" * 10000),
    *("word **bold** `code` [a](https://e.org)\n" * 10000, "|" * 5000 + "\n" + "|-" * 5000),
    *("` " + "a" * 50000 + "`", "- " * 5000 + "x", "https://a" + "." * 20000, "# " * 9999 + "a"),
    " ".join("`" * n for n in range(1, 200)),
]


def test_no_text_takes_long(page):
    # Where work grows with the square of a text, these take minutes.
    times = page.evaluate(
        """(texts) => texts.map((text) => {
            const began = performance.now();
            document.createElement("div").append(...markdown(text));
            return performance.now() - began;
        })""",
        LONG,
    )
    assert {text[:20]: time for text, time in zip(LONG, times, strict=True) if time > 15_000} == {}


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


def test_all_is_printed(page, model):
    model.answer = "line\n\n" * 200
    ask(page, "?")
    answered(page)
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf())) > 3


def test_text_from_right_to_left(page, model):
    model.answer = "שלום"
    ask(page, "שלום")
    answered(page)
    for node in page.locator(".body, .assistant p").all()[::2]:
        assert node.evaluate("(node) => getComputedStyle(node).direction") == "rtl"
    page.get_by_label("Message").fill("שלום")
    direction = page.get_by_label("Message").evaluate("(node) => getComputedStyle(node).direction")
    assert direction == "rtl"


def test_much_fits_a_phone(page, model):
    page.set_viewport_size({"width": 320, "height": 568})
    attach(page, *[png(size=(500, 200))] * 12)
    expect(page.locator("#pending img")).to_have_count(12)
    assert page.locator("#composer").bounding_box()["y"] + 40 < 568
    model.answer = "|a|b|c|d|\n|-|-|-|-|\n|" + "unforgettable experience|" * 4
    ask(page, "?")
    answered(page)
    assert page.locator("td").first.bounding_box()["width"] > 90
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, scheme):
    page.emulate_media(color_scheme=scheme)
    placeholder, border, ground = page.evaluate(
        """() => {
            const pixel = document.createElement("canvas").getContext("2d");
            const light = (colour) => {
                pixel.fillStyle = colour;
                pixel.fillRect(0, 0, 1, 1);
                const parts = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) =>
                    part < 11 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4);
                return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
            };
            const composer = getComputedStyle(document.getElementById("composer"));
            document.activeElement.blur();
            const text = getComputedStyle(document.getElementById("text"), "::placeholder");
            return [text.color, composer.borderColor, composer.backgroundColor].map(light);
        }"""
    )

    def contrast(light):
        return (max(light, ground) + 0.05) / (min(light, ground) + 0.05)

    assert contrast(placeholder) >= 4.5 and contrast(border) >= 3


def test_the_menu_of_a_phone(page, model):
    page.set_viewport_size({"width": 320, "height": 568})
    held(page, model, 1)
    menu, new = page.locator("#menu"), page.get_by_role("button", name="New conversation")
    for close in ("key", "click"):
        menu.click()
        expect(new).to_be_focused()
        assert page.get_by_label("Message").evaluate("(node) => node.closest('[inert]') !== null")
        page.keyboard.press("Escape") if close == "key" else page.mouse.click(310, 300)
        expect(new).to_be_hidden()
        expect(menu).to_be_focused()
    release(page, model)
    assert page.locator(".ending").count() == 0
