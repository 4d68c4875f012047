"""Times `dl-techniques serve` over HTTP with a trained run: more and more clients.

    KERAS_BACKEND=jax python benchmarks/serving_http.py runs/demo [--clients 1,4,16,64] [--known]

The server is a process of its own, on the same cores. Each client asks `benchmarks/serving.py`'s
questions about pictures, one after the other, greedily and streamed. Each question comes from
somebody of whom nothing is known; with `--known` all come from one, so that nothing but a prompt's
last token is new. Each number of clients asks for five seconds, once more than is counted. Printed
are answers/s, the ratio to the first number's, the time to the first token (median and 95th
percentile) and how many answers differ from the first one to that question.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
from PIL import Image
from serving import MOST_TOKENS, different_questions

PICTURE = 96  # Pixels.
SECONDS = 5


def body_of(request) -> bytes:
    """Return a question as OpenAI's clients send it."""
    messages = []
    for message in request.messages:
        content = [{"type": "text", "text": message["content"]}]
        if "image" in message:
            file = io.BytesIO()
            Image.fromarray(np.asarray(message["image"])).save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages.append({"role": message["role"], "content": content})
    settings = {"model": "served", "temperature": 0, "max_tokens": MOST_TOKENS, "stream": True}
    return json.dumps({**settings, "messages": messages}).encode()


class Load:
    """Clients that ask at the same time.

    Args:
        port: Of the server, on this machine.
        bodies: What is asked.
        known: Whether all are one client.
    """

    def __init__(self, port: int, bodies: list[bytes], known: bool):
        self._port, self._bodies, self._known = port, bodies, known
        self._names, self._answers = 0, {}

    async def run(self, clients: int) -> dict:
        """Let so many clients ask; return the figures."""
        self._firsts, self._different = [], 0
        self._end = time.perf_counter() + SECONDS
        await asyncio.gather(*map(self._client, range(clients)))
        return {
            "answers": len(self._firsts) / SECONDS,
            "p50": float(np.median(self._firsts)),
            "p95": float(np.percentile(self._firsts, 95)),
            "different": self._different,
        }

    async def _client(self, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        place = 7 * client
        while time.perf_counter() < self._end:
            place = (place + 1) % len(self._bodies)
            body, began = self._bodies[place], time.perf_counter()
            self._names += not self._known
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"X-Forwarded-For: name%d\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % (self._names, len(body)) + body
            )
            status = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in status.splitlines()[0]:
                raise RuntimeError(f"The server refused a question: {status.decode()}")
            text, first = "", None
            async for delta in _deltas(reader):
                # The first piece says only who speaks.
                if first is None and "role" not in delta:
                    first = time.perf_counter() - began
                text += delta.get("content", "")
            self._firsts.append(first)
            self._different += self._answers.setdefault(place, text) != text
        writer.close()


async def _deltas(reader):
    """Yield the parts of an answer's one choice, up to the end of the chunked body."""
    while size := int(await reader.readline(), 16):
        for line in (await reader.readexactly(size + 2)).decode().splitlines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"]
    await reader.readline()


def wait_until_ready(server: subprocess.Popen, port: int) -> None:
    """Wait until questions are taken.

    Raises:
        RuntimeError: if the server ends.
    """
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("The server has ended; its log is above.")


async def measure(load: Load, numbers: list[int]) -> None:
    """Print one table."""
    print(f"{'clients':>8}{'answers/s':>11}{'ratio':>7}{'p50 s':>8}{'p95 s':>8}{'different':>11}")
    one = None
    for clients in numbers:
        await load.run(clients)
        found = await load.run(clients)
        one = one or found["answers"]
        print(
            f"{clients:>8}{found['answers']:>11.1f}{found['answers'] / one:>7.2f}"
            f"{found['p50']:>8.3f}{found['p95']:>8.3f}{found['different']:>11}",
            flush=True,
        )


def main() -> None:
    """Start the server, measure, and end it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--known", action="store_true", help="all questions are one client's")
    options = parser.parse_args()
    numbers = [int(number) for number in options.clients.split(",")]
    bodies = [body_of(request) for request in different_questions(PICTURE, None)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = os.path.join(os.path.dirname(sys.executable), "dl-techniques")
    command = [program, "serve", options.run]
    command += ["--name", "served", "--port", str(port), "--rows", "16"]
    command += ["--max-waiting", str(4 * max(numbers)), "--max-per-client", str(4 * max(numbers))]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stderr=log)
        try:
            wait_until_ready(server, port)
            asyncio.run(measure(Load(port, bodies, options.known), numbers))
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode()[-3000:])
            raise
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
