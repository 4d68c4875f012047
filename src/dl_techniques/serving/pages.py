"""The pages for people: the chat, and a list of what can be asked of the server."""

import base64
import hashlib
import html
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

CHAT_PAGE = Path(__file__).with_name("chat.html")
_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
padding: 0 1rem; color-scheme: light dark } code { font-weight: 600 }"""


def page_response(page: str) -> HTMLResponse:
    """Return a page that runs nothing but its own scripts and loads nothing from elsewhere."""
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(page, 'script')}",
            f"style-src {_hashes(page, 'style')}",
            "img-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def reference_page(app: FastAPI) -> str:
    """Return a page of all routes with what they do, from the app's own description."""
    schema = app.openapi()
    lines = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            text = html.escape(route.get("description", route["summary"]))
            lines.append(f"<dt><code>{method.upper()} {html.escape(path)}</code><dd>{text}")
    title = html.escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>Bodies and answers are described in "
        f'<a href="/openapi.json">/openapi.json</a>.<dl>{"".join(lines)}</dl></html>'
    )


def _hashes(page, tag):
    """Return the hashes of the page's inline elements, as a content security policy has them."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [hashlib.sha256(text.encode()).digest() for text in found]
    return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"
