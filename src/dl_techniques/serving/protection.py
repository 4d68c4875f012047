"""What stands before every route: who may ask, from where, how much; headers; the log."""

import asyncio
import hashlib
import json
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from dl_techniques.serving.failures import error_response
from dl_techniques.serving.settings import ServerSettings, host_name
from dl_techniques.utils.logger import logger

# Pages and probes hold no secrets.
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health", "/ready")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Protection:
    """ASGI middleware around an app.

    Every request gets a `state.client` (whose it is), a `state.log` (a dict of what else its line
    in the log has; never a message or an image) and the security headers.

    Args:
        app: The app.
        settings: Keys and limits.
        monitoring: Gets the times of requests.
    """

    def __init__(self, app, settings: ServerSettings, monitoring):
        self._app, self._settings, self._monitoring = app, settings, monitoring
        self._hosts = frozenset(map(host_name, settings.allowed_hosts))

    async def __call__(self, scope, receive, send):
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, headers, status = time.monotonic(), Headers(scope=scope), 500
        scope.setdefault("state", {})
        # Without keys anybody can make one up.
        key = _key(headers) if self._settings.api_keys else ""
        scope["state"] |= {"client": _client(scope, key), "log": {}}

        async def answer(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers)
        try:
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                await self._app(scope, _limited(receive, self._settings), answer)
        finally:
            self._write_log(scope, status, time.monotonic() - began)

    def _refusal(self, scope, headers):
        """Return the answer to a request that must not reach the app, or None."""
        settings = self._settings
        if self._hosts and host_name(headers.get("host", "")) not in self._hosts:
            return error_response(403, "This server has another name.", "unknown_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return error_response(403, "Web pages of others may not ask here.", "cross_origin")
        if settings.api_keys and scope["path"] not in OPEN_PATHS:
            if not settings.knows_key(_key(headers)):
                challenge = {"WWW-Authenticate": "Bearer"}
                message = "An API key is needed: Authorization: Bearer KEY."
                return error_response(401, message, "invalid_api_key", headers=challenge)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > settings.max_body_bytes:
            return error_response(413, _too_long(settings), "request_too_large")
        return None

    def _write_log(self, scope, status, seconds):
        # By the route, as other paths may hold anything.
        path = getattr(scope.get("route"), "path", "other")
        self._monitoring.observe(path, status, seconds)
        line = {
            "event": "request",
            "id": secrets.token_hex(6),
            "client": scope["state"]["client"],
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            **scope["state"]["log"],
        }
        logger.info(json.dumps(line))


def _limited(receive, settings):
    """Return `receive` for a body that may be neither too long nor too slow."""
    size, whole = 0, False

    async def limited():
        nonlocal size, whole
        if whole:  # What follows is the news that the client left, whenever that is.
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), settings.body_timeout)
        except TimeoutError:
            raise HTTPException(408, "The request did not come in time.") from None
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > settings.max_body_bytes:
            raise HTTPException(413, _too_long(settings))
        return message

    return limited


def _key(headers):
    """Return the key that a client has sent, or ""."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _client(scope, key):
    """Return what tells clients apart: a digest of address and key, which names neither."""
    address = (scope.get("client") or ("",))[0]
    return hashlib.sha256(f"{address} {key}".encode()).hexdigest()[:12]


def _too_long(settings):
    return f"A request may have at most {settings.max_body_bytes} bytes."
