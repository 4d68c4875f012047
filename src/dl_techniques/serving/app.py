"""create_app: the HTTP server around an engine."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from dl_techniques import __version__
from dl_techniques.serving import attention_route, guide_routes, openai_routes
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.failures import add_handlers
from dl_techniques.serving.monitoring import Monitoring
from dl_techniques.serving.pages import CHAT_PAGE, page_response, reference_page
from dl_techniques.serving.protection import Protection
from dl_techniques.serving.requests import ClosedError
from dl_techniques.serving.settings import ServerSettings
from dl_techniques.serving.uploads import UploadStore
from dl_techniques.utils.logger import logger


class ErrorObject(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer to a request that cannot be answered."""

    error: ErrorObject


def create_app(
    engine: ServingEngine,
    settings: ServerSettings,
    warm_up: bool = True,
    give_up: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the app; when it ends, so does the engine.

    Args:
        engine: Answers.
        settings: What is allowed.
        warm_up: Whether programs are compiled before the first question is answered; /ready says
            no meanwhile, and questions wait.
        give_up: Called when that fails; the reason is in the log and `app.state.failure`.
    """
    monitoring = Monitoring(engine)

    async def prepare(app):
        try:
            if warm_up:
                await run_in_threadpool(engine.warm_up)
        except ClosedError:  # The server ends before it was ready.
            return
        except Exception as error:  # Whatever it is, nothing will ever be answered.
            logger.exception("The model cannot answer.")
            app.state.failure = error
            await run_in_threadpool(engine.close)
            give_up()
            return
        app.state.ready.set()
        logger.info("Ready to answer.")

    @contextlib.asynccontextmanager
    async def lifespan(app):
        preparing = asyncio.create_task(prepare(app))
        yield
        await run_in_threadpool(engine.close)
        await preparing
        app.state.uploads.close()

    # The usual pages of the documentation load their scripts from elsewhere.
    app = FastAPI(
        title=f"dl_techniques: {settings.model_name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody, "description": "What is wrong with the request."}},
    )
    app.state.engine, app.state.settings = engine, settings
    app.state.uploads = UploadStore(settings.upload_bytes, settings.upload_seconds)
    app.state.started, app.state.ready = int(time.time()), asyncio.Event()
    app.state.unready, app.state.failure = 0, None  # How many questions wait until it is ready.
    app.add_middleware(Protection, settings=settings, monitoring=monitoring)
    add_handlers(app)
    app.include_router(openai_routes.router)
    app.include_router(guide_routes.router)
    app.include_router(attention_route.router)
    _add_own_routes(app, monitoring)
    return app


def _add_own_routes(app, monitoring):
    page = CHAT_PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return page_response(page)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page_response(reference_page(app))

    @app.get("/health", tags=["Operation"])
    async def health(request: Request) -> JSONResponse:
        """Tell whether the server works; 503 if it must be started anew."""
        alive = request.app.state.engine.is_alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/ready", tags=["Operation"])
    async def ready(request: Request) -> JSONResponse:
        """Tell whether questions are answered; 503 while programs are compiled, or at the end."""
        is_ready = request.app.state.ready.is_set() and request.app.state.engine.is_alive
        status = "ready" if is_ready else "not ready"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    @app.get("/metrics", tags=["Operation"])
    def metrics() -> Response:
        """Return counts for Prometheus."""
        return Response(monitoring.text(), media_type="text/plain; version=0.0.4")
