"""Times the serving engine with a trained run: more and more clients, some of whom leave.

    KERAS_BACKEND=jax python benchmarks/serving.py runs/demo [--clients 1,4,16,64] [--requests 10]
    KERAS_BACKEND=jax python benchmarks/serving.py runs/demo --lengths 32

Each client asks its questions one after the other, about pictures of shapes that it draws for
itself; every fifth request is given up, half of them before the first token. Every other answer is
compared with the one that `generate` gives to the same question alone. Each number of clients runs
again and again, each time as other clients whose pictures are not known; what counts are the runs
in which nothing was compiled, five seconds of them. Printed are new tokens/s of
all clients together (of answers that were waited for), the ratio to one client's, requests/s, the
time to the first token (median and 95th percentile) and how many answers were wrong or lost.

With `--lengths N` end tokens are ignored, and each answer has a length of its own between 1 and N.
"""

import argparse
import threading
import time
from dataclasses import replace

import numpy as np

QUESTIONS = (
    "How many objects are there?",
    "Is there a red circle?",
    "What colour is the largest object in the picture, and what shape does it have?",
    "Count.",
)
DIFFERENT = 40
MOST_TOKENS = 32
SECONDS = 5


def different_questions(size: int, lengths: int | None) -> list:
    """Return requests about pictures of shapes, of one and two turns, whose client is not set."""
    from dl_techniques.datasets.shapes_scene import draw_plan, draw_scene, render_scene
    from dl_techniques.serving.requests import ChatRequest

    rng = np.random.default_rng(0)
    requests = []
    for k in range(DIFFERENT):
        picture = render_scene(draw_scene(rng, draw_plan(rng)), size, rng)
        messages = [{"role": "user", "content": QUESTIONS[k % 4], "image": picture}]
        if k % 5 == 0:
            messages += [
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": QUESTIONS[(k + 1) % 4]},
            ]
        new_tokens = int(rng.integers(1, lengths + 1)) if lengths else MOST_TOKENS
        requests.append(ChatRequest(messages, new_tokens, ignore_eos=bool(lengths)))
    return requests


def answer_alone(model, request) -> str:
    """Return the right answer."""
    stop_ids = () if request.ignore_eos else None
    return model.generate(request.messages, request.max_new_tokens, stop_ids=stop_ids)


class Load:
    """Clients that ask at the same time.

    Args:
        engine: A `ServingEngine`.
        asked: Requests.
        answers: What is right for each.
        requests: Of each client.
    """

    def __init__(self, engine, asked, answers, requests: int):
        self._engine, self._asked, self._answers = engine, asked, answers
        self._requests, self._runs = requests, 0

    def measure(self, clients: int) -> dict:
        """Return the figures of so many clients."""
        tickets, right, seconds, lost = [], [], 0.0, 0
        while seconds < SECONDS:
            compilations = self._compilations()
            run = self._run(clients)
            if self._compilations() == compilations:
                seconds += run
                tickets += self._tickets
                right += self._right
                lost += clients * self._requests - len(self._tickets) - len(self._given_up)
        firsts = [ticket.first - ticket.began for ticket in tickets]
        return {
            "tokens": sum(ticket.new_tokens for ticket in tickets) / seconds,
            "requests": len(tickets) / seconds,
            "p50": float(np.median(firsts)),
            "p95": float(np.percentile(firsts, 95)),
            "wrong": right.count(False),
            "lost": lost,
        }

    def _compilations(self):
        return self._engine.model.generation_stats()["compilations"]

    def _run(self, clients):
        """Let so many clients ask; return how long it took, in seconds."""
        self._tickets, self._right, self._given_up = [], [], []
        self._runs += 1
        self._engine.model.vision_cache.clear()
        threads = [threading.Thread(target=self._client, args=(k,)) for k in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def _client(self, client):
        for k in range(self._requests):
            place = (7 * client + k) % len(self._asked)
            request = replace(self._asked[place], client=f"{self._runs} {client}")
            ticket = self._engine.submit(request)
            if (client + k) % 5 == 0:
                if k % 2:
                    next(iter(ticket), None)
                ticket.cancel()
                self._given_up.append(ticket)
                continue
            self._right.append(ticket.result() == self._answers[place])
            self._tickets.append(ticket)


def main():
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lengths", type=int, help="of the longest answer; ends are ignored")
    options = parser.parse_args()
    from dl_techniques.cli_loading import load_answering
    from dl_techniques.serving.engine import ServingEngine

    model = load_answering(options.run)
    asked = different_questions(model.image_size[0], options.lengths)
    answers = [answer_alone(model, request) for request in asked]
    numbers = [int(number) for number in options.clients.split(",")]
    engine = ServingEngine(
        model,
        options.rows,
        max_waiting=4 * max(numbers),
        max_per_client=4,
        max_new_tokens=max(MOST_TOKENS, options.lengths or 0),
    )
    load = Load(engine, asked, answers, options.requests)
    print(
        f"{'clients':>8}{'tokens/s':>10}{'ratio':>7}{'requests/s':>12}{'p50 s':>8}{'p95 s':>8}"
        f"{'wrong':>7}{'lost':>6}"
    )
    one = None
    for clients in numbers:
        found = load.measure(clients)
        one = one or found["tokens"]
        print(
            f"{clients:>8}{found['tokens']:>10.1f}{found['tokens'] / one:>7.2f}"
            f"{found['requests']:>12.1f}{found['p50']:>8.3f}{found['p95']:>8.3f}"
            f"{found['wrong']:>7}{found['lost']:>6}",
            flush=True,
        )
    engine.close()


if __name__ == "__main__":
    main()
