"""Times the serving engine with the 222M NanoVLM: clients that come and go, and one alone.

    KERAS_BACKEND=jax python benchmarks/serving.py [--clients 8] [--questions 4]

float32, random weights, greedy. Every client asks its questions one after the other, each about a
picture of its own, with answers of 24 to 64 tokens (random weights do not end them). `alone` are
the same questions of a single client; both run twice, and the second time counts, as the first one
compiles. New tokens/s are of all clients together, from the first question to the last answer.
"""

import argparse
import threading
import time

import numpy as np

IMAGE_SIZE, TOKENS, VOCABULARY = 224, 49, 49152


def served_engine(rows: int):
    """Return an engine of a model with random weights."""
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor
    from dl_techniques.models.nano_vlm import create_nanovlm_222m
    from dl_techniques.preprocessing.tokenizer import CharacterTokenizer
    from dl_techniques.serving.engine import ServingEngine

    tokenizer = CharacterTokenizer(VOCABULARY - 1)
    (image_id,) = tokenizer.add_special_tokens(["<|image|>"])
    model = create_nanovlm_222m(image_token_id=image_id, vocab_size=VOCABULARY)
    model.processor = VQADataProcessor(
        IMAGE_SIZE, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=TOKENS
    )
    return ServingEngine(model, rows, max_per_client=rows, max_new_tokens=64)


def requests_of(client: int, questions: int):
    """Return a client's questions."""
    from dl_techniques.serving.requests import ChatRequest

    generator = np.random.default_rng(client)
    picture = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    messages = [{"role": "user", "content": f"What is it, {client}?", "image": picture}]
    lengths = generator.integers(24, 65, questions)
    return [ChatRequest(messages, int(n), client=str(client)) for n in lengths]


def time_clients(engine, work) -> tuple[float, float]:
    """Return new tokens/s, and the mean time to the first token in s."""
    tickets = []

    def ask(requests):
        for request in requests:
            ticket = engine.submit(request)
            ticket.result()
            tickets.append(ticket)

    threads = [threading.Thread(target=ask, args=(requests,)) for requests in work]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    first = np.mean([ticket.first - ticket.began for ticket in tickets])
    return sum(ticket.new_tokens for ticket in tickets) / seconds, float(first)


def main():
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--questions", type=int, default=4)
    arguments = parser.parse_args()
    engine = served_engine(arguments.clients)
    together = [requests_of(k, arguments.questions) for k in range(arguments.clients)]
    alone = [[request for requests in together for request in requests]]
    print(f"{'clients':>8s} {'new tokens/s':>13s} {'first token, s':>15s}")
    for work in (alone, together):
        time_clients(engine, work)
        speed, first = time_clients(engine, work)
        print(f"{len(work):8d} {speed:13.1f} {first:15.2f}")
    engine.close()


if __name__ == "__main__":
    main()
