"""Where the server listens, and how it ends."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

# Seconds that answers on their way get when the server is to end, and those after which
# connections are cut: less than the 10 in which containers must end.
ANSWER_SECONDS, CUT_SECONDS = 6, 8


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound but does not listen yet: a port of others is told at once.

    Args:
        host: A name or an address.
        port: 0: any.

    Raises:
        OSError: if the port is taken, or the host is not this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Clients that try another address of a name first go on to this one.
        family, kind, protocol, _, address = min(found, key=lambda a: a[0] != socket.AF_INET)
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # Else clients of IPv4 would have other addresses.
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            stack.pop_all()
    except OSError as error:
        place = f"{host}, port {port}"
        raise OSError(f"Cannot listen at {place}: {error.strerror or error}.") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address of a server that listens at a socket."""
    address, port, *_ = bound.getsockname()
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Server(uvicorn.Server):
    """A server that, when it is to end, tells those who wait so, and cuts nobody off unasked.

    Args:
        app: What is served.
        close: Ends all answers with an error; called in a thread of its own.
    """

    def __init__(self, app: FastAPI, close: Callable[[], None]):
        config = uvicorn.Config(
            app,
            http="h11",  # The other one, taken where it is installed, bounds no headers.
            log_config=None,  # Its lines go where ours go.
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=1024,
            timeout_graceful_shutdown=CUT_SECONDS,
        )
        super().__init__(config)
        self._close = close

    def end(self) -> None:
        """Begin to end."""
        self.should_exit = True

    async def shutdown(self, sockets=None) -> None:
        """Let answers end by themselves for a while."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(ANSWER_SECONDS, loop.run_in_executor, None, self._close)
        await super().shutdown(sockets)
        timer.cancel()
