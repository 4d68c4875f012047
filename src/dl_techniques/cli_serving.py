"""The commands `dl-techniques serve` and `dl-techniques chat`."""

import os
from typing import Annotated

import typer

from dl_techniques.utils.logger import logger

API_KEY = "DL_TECHNIQUES_API_KEY"
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
        typer.Option(help=f"May be repeated; none: that in {API_KEY}; if unset: open to all."),
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
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 128,
    max_per_client: Annotated[
        int, typer.Option(min=1, help="Requests of one client that may wait or be answered.")
    ] = 64,
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
        from dl_techniques.serving.app import create_app
        from dl_techniques.serving.listening import Server, bound_socket, url_of
        from dl_techniques.serving.settings import MIB, ServerSettings, is_loopback
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'dl_techniques[serve]'.") from error
    from dl_techniques.cli_loading import load_answering
    from dl_techniques.serving.engine import ServingEngine

    hosts = tuple(allowed_host or ())
    if hosts or is_loopback(host):
        hosts += ("localhost", "127.0.0.1", "::1")
    keys = tuple(api_key or filter(None, [os.environ.get(API_KEY)]))
    if not (keys or is_loopback(host)):
        logger.warning(f"Everybody who reaches {host} may ask: there is no --api-key.")
    name = name or os.path.basename(os.path.abspath(checkpoint))
    limits = {"max_body_bytes": max_body_mib * MIB, "max_pixels": max_pixels}
    limits["max_images"] = max_images
    settings = ServerSettings(name, keys, hosts, **limits)
    with bound_socket(host, port) as bound:
        model = load_answering(checkpoint, tokenizer)
        engine = ServingEngine(
            model, rows, max_waiting, max_per_client, max_new_tokens, timeout=timeout
        )
        app = create_app(engine, settings, warm_up, lambda: server.end())
        server = Server(app, engine.close)
        logger.info(f"{name} at {url_of(bound)}, soon.")
        server.run(sockets=[bound])
    if app.state.failure is not None:
        raise SystemExit(1)


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
