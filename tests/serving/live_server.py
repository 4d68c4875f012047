"""An app on a real port."""

import contextlib
import threading

import uvicorn
from waiting import wait_until


@contextlib.contextmanager
def served(app):
    """Serve an app, whose engine stays when it ends; give the port."""
    app.state.ready.set()
    config = uvicorn.Config(app, port=0, http="h11", log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()
    app.state.uploads.close()
