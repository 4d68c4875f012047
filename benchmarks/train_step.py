"""Times one training step of the 222M NanoVLM beside transformers' SmolVLM of the same sizes.

    python benchmarks/train_step.py [--backend jax] [--rounds 7]

float32, batch 2 x 128 tokens (49 of them the image's), AdamW, gradients clipped at norm 1. The
peer is PyTorch eager, as transformers' users run it. Needs dl_techniques[dev] and the backends.
In the end it tells how long the step's matrix products alone would take, at the speed at which
PyTorch multiplies matrices of such sizes: no step in float32 takes much less.
"""

import argparse
import json
import time

import numpy as np
from side_by_side import figure, measure, print_report, run_child
from smolvlm_peer import IMAGE_ID, IMAGE_SIZE, IMAGE_TOKENS, VOCABULARY, smolvlm, smolvlm_inputs

BATCH, LENGTH = 2, 128
# Rows, inputs and outputs of products in the encoder's and the decoder's blocks.
PRODUCTS = ((392, 768, 3072), (392, 768, 768), (256, 576, 1536), (256, 576, 576))


def batch(rows: int = BATCH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels [B, H, W, 3], ids [B, S] and labels [B, S] (-100 at the image)."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(rows, IMAGE_SIZE, IMAGE_SIZE, 3)).astype("float32")
    ids = rng.integers(3, VOCABULARY - 1, (rows, LENGTH)).astype("int32")
    ids[:, :IMAGE_TOKENS] = IMAGE_ID
    return pixels, ids, np.where(ids == IMAGE_ID, -100, ids)


def our_step():
    """Return a function that does one step of our trainer, set up as our scripts do."""
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()
    from dl_techniques.models.nano_vlm import create_nanovlm_222m
    from dl_techniques.training.trainer import NanoVLMTrainer

    pixels, ids, labels = batch()
    trainer = NanoVLMTrainer(create_nanovlm_222m(image_token_id=IMAGE_ID))
    return lambda: trainer.train_step(({"images": pixels, "text_tokens": ids}, labels))


def peer_step():
    """Return a function that does one step of SmolVLM in PyTorch eager."""
    import torch

    model = smolvlm().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = smolvlm_inputs(*batch())

    def step():
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def products() -> dict:
    """Return the FLOPs of the step's matrix products, and how many a second PyTorch does."""
    import torch

    from dl_techniques.models.nano_vlm import create_nanovlm_222m
    from dl_techniques.training.flops import model_flops

    pixels, ids, _ = batch()
    inputs = {"images": pixels[:, None], "text_tokens": ids}
    flops = model_flops(create_nanovlm_222m(image_token_id=IMAGE_ID), inputs)
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in PRODUCTS]
    for _ in ("warm-up", "measured"):
        began, rounds = time.perf_counter(), 0
        while time.perf_counter() < began + 3:
            for one, other in pairs:
                torch.mm(one, other)
            rounds += 1
        done = rounds * sum(2 * m * k * n for m, k, n in PRODUCTS)
        speed = done / (time.perf_counter() - began)
    return {"flops": flops, "speed": speed}


def main() -> None:
    """Measure every backend asked for, or act as one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["jax", "tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--role", choices=["ours", "peer", "products"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "products":
        print(json.dumps(products()))
        return
    if options.role:
        step = our_step() if options.role == "ours" else peer_step()
        print(json.dumps(measure(step, options.rounds)))
        return
    figures = []
    for backend in [options.backend] if options.backend else ["jax", "tensorflow", "torch"]:
        peer, ours = (run_child(__file__, r, backend, options.rounds) for r in ("peer", "ours"))
        for name, key, unit in (
            ("train_step", "median", "s"),
            ("first_step", "first", "s"),
            ("peak_memory", "peak_mb", "MB"),
        ):
            figures.append(figure(name, backend, ours[key], peer[key], unit))
    print_report(figures)
    found = run_child(__file__, "products", "torch", options.rounds)
    flops, speed = found["flops"] / 1e12, found["speed"] / 1e12
    print(f"products: {flops:.2f} TFLOP, {flops / speed:.2f} s at {speed:.3f} TFLOP/s")


if __name__ == "__main__":
    main()
