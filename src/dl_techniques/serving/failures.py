"""What clients are told when something is wrong: OpenAI's error objects, never a stack trace."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dl_techniques.serving.requests import (
    ClosedError,
    FailedError,
    FullError,
    TimedOutError,
)
from dl_techniques.utils.logger import logger

_STATUS = {FullError: 429, TimedOutError: 504, ClosedError: 503, FailedError: 500}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: The HTTP status.
        message: What was wrong, and what would be right.
        code: A short name of it for programs.
        param: Which part of the request.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param=None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def error_object(status: int, message: str, code=None, param=None) -> dict:
    """Return the body of an answer with an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, code=None, param=None, headers=None) -> JSONResponse:
    """Return an answer with an error."""
    return JSONResponse(error_object(status, message, code, param), status, headers)


def response_of(error: Exception) -> JSONResponse:
    """Return the answer that tells a client of an error."""
    if isinstance(error, RefusedError):
        return error_response(error.status, str(error), error.code, error.param)
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            retry = {"Retry-After": str(error.retry_after)} if kind is FullError else None
            return error_response(status, str(error), headers=retry)
    logger.error("An unexpected error.", exc_info=error)
    return error_response(500, "The server had an error; it is in its log.")


def _place(location, body, is_missing) -> str | None:
    """Return where in a body an error lies, without the names of kinds that stand between."""
    names, value = [], body
    for part in location:
        if part in _keys(value):
            value = value[part]
        elif not is_missing or part != location[-1]:
            continue
        names.append(str(part))
    return ".".join(names) or None


def _keys(value):
    if isinstance(value, list):
        return range(len(value))
    return value if isinstance(value, dict) else ()


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every error with an error object."""

    async def known(request: Request, error: Exception):
        return response_of(error)

    for kind in (RefusedError, *_STATUS, Exception):
        app.add_exception_handler(kind, known)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError):
        # Without the values, which may be whole images.
        # Of what may be of several kinds the error that lies deepest is that of the kind meant.
        found = max(error.errors(), key=lambda error: len(error["loc"]))
        place = _place(found["loc"][1:], error.body, found["type"] == "missing")
        message = found["msg"] if place is None else f"{place}: {found['msg']}"
        return error_response(400, message, param=place)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException):
        return error_response(error.status_code, str(error.detail), headers=error.headers)
