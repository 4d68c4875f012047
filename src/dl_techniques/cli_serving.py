"""The commands `dl-techniques serve` and `dl-techniques chat`."""

from typing import Annotated

import typer

from dl_techniques.utils.logger import logger

Checkpoint = Annotated[str, typer.Argument(help="Training run, preset folder, or hf://owner/name.")]
TokenizerSource = Annotated[
    str | None, typer.Option(help="Folder or hf://owner/name, if the checkpoint has none.")
]


def serve(
    checkpoint: Checkpoint,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="DL_TECHNIQUES_API_KEY", help="May be repeated; none: open to all."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which the server is asked for; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; none: the checkpoint's name.")
    ] = None,
    tokenizer: TokenizerSource = None,
    rows: Annotated[int, typer.Option(min=1, help="Requests that are decoded together.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    max_per_client: Annotated[int, typer.Option(min=1, help="Of these, one client's.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    max_images: Annotated[int, typer.Option(min=1, help="Of one conversation.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of one image.")] = 25_000_000,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Of one request.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 300.0,
    warm_up: Annotated[
        bool, typer.Option(help="Compile programs before the first question.")
    ] = True,
):
    """Answer over HTTP, as OpenAI's servers do, with a web page to chat."""
    try:
        import uvicorn

        from dl_techniques.serving.app import create_app
        from dl_techniques.serving.settings import MIB, ServerSettings, is_loopback
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'dl_techniques[serve]'.") from error
    from dl_techniques.cli_loading import load_answering
    from dl_techniques.serving.engine import ServingEngine

    hosts = tuple(allowed_host or ())
    if hosts or is_loopback(host):
        hosts += ("localhost", "127.0.0.1", "::1")
    if not (api_key or is_loopback(host)):
        logger.warning(f"Everybody who reaches {host} may ask: there is no --api-key.")
    name = name or checkpoint.rstrip("/").rpartition("/")[2]
    limits = {"max_body_bytes": max_body_mib * MIB, "max_pixels": max_pixels}
    limits["max_images"] = max_images
    settings = ServerSettings(name, tuple(api_key or ()), hosts, **limits)
    model = load_answering(checkpoint, tokenizer)
    engine = ServingEngine(
        model, rows, max_waiting, max_per_client, max_new_tokens, timeout=timeout
    )
    app = create_app(engine, settings, warm_up)
    logger.info(f"{name} at http://{host}:{port} once it is ready.")
    uvicorn.run(
        app,
        host=host,
        port=port,
        http="h11",  # The other one of uvicorn's, taken where it is installed, bounds no headers.
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=1024,
        timeout_graceful_shutdown=10,
    )


def chat(checkpoint: Checkpoint, tokenizer: TokenizerSource = None):
    """Talk with a model about images, at the terminal; /help tells more."""
    from dl_techniques.cli_loading import load_answering
    from dl_techniques.serving.engine import ServingEngine
    from dl_techniques.serving.terminal_chat import TerminalChat

    model = load_answering(checkpoint, tokenizer)
    engine = ServingEngine(model, rows=1)
    try:
        TerminalChat(engine).run()
    finally:
        engine.close()
