"""Times training steps of the 222M NanoVLM on a GPU beside transformers' SmolVLM of its sizes.

    python benchmarks/gpu_step.py [--backend jax] [--batch-sizes 1,64,128,256] [--rounds 10]

mixed_bfloat16 (float32 weights, products in bfloat16), rows of 128 tokens of which 49 are the
image's, AdamW, gradients clipped at norm 1. The peer is PyTorch eager under autocast, with its own
attention ("sdpa") and PyTorch's fused AdamW. Batches lie on the device: trainers copy them there
while the step before runs. MFU counts the matrix products of `model_flops` by the data sheet's
dense peak. Memory is what the backend's allocator has counted at its peak (1e6 bytes); "published"
is what nanoVLM's authors print for their own step at these batch sizes.
"""

import argparse
import contextlib
import json
import os
import sys

import train_step
from side_by_side import measure, run_child

# Products by cuBLAS, which adds biases and applies GELU in the same pass: 3 % less time a step.
XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false"
PUBLISHED_MB = {1: 4449, 64: 20995, 128: 38834, 256: 74561}


def our_steps(options) -> dict:
    """Measure our step; times in s, memory in bytes."""
    import keras

    from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
    from dl_techniques.models.nano_vlm import create_nanovlm_222m
    from dl_techniques.optimization import optimizer_builder
    from dl_techniques.training.device_peaks import device_name, peak_flops_per_second
    from dl_techniques.training.flops import model_flops
    from dl_techniques.training.setup import component_optimizer
    from dl_techniques.training.trainer import NanoVLMTrainer
    from dl_techniques.utils.device_memory import gpu_peak_counter

    keras.config.set_dtype_policy("mixed_bfloat16")
    pixels, ids, labels = train_step.batch(options.batch)
    inputs = {"images": keras.ops.convert_to_tensor(pixels), "text_tokens": ids}
    optimizers = {
        name: optimizer_builder({"type": options.optimizer}, 1e-5)
        for name in ("vision", "language", "projection")
    }
    trainer = NanoVLMTrainer(
        create_nanovlm_222m(image_token_id=train_step.IMAGE_ID),
        loss_fn=NanoVLMLoss(chunk_size=options.chunk_size),
        optimizer=component_optimizer(optimizers),
    )
    counter = gpu_peak_counter()[0]
    figures = measure(lambda: trainer.train_step((inputs, labels)), options.rounds, warm_up=3)
    flops = model_flops(trainer.model, inputs)
    peak = peak_flops_per_second("bfloat16")
    return {
        **figures,
        "device": device_name(),
        "tflop": flops / 1e12,
        "mfu": peak and flops / figures["median"] / peak,
        "peak_mb": counter and counter() / 1e6,
    }


def peer_steps(options) -> dict:
    """Measure the peer's step."""
    import torch
    from smolvlm_peer import smolvlm, smolvlm_inputs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = smolvlm().train().to(device)
    # Under autocast its connector gives bfloat16, which it writes among float32 embeddings.
    model.model.connector.register_forward_hook(lambda module, args, out: out.float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs = smolvlm_inputs(*train_step.batch(options.batch), device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    figures = measure(step, options.rounds, warm_up=3)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
    return {**figures, "peak_mb": peak}


def measured_or_none(role: str, backend: str, batch: int, options) -> dict | None:
    """Return what a process of its own measured; None if it ran out of memory."""
    more = ["--batch", str(batch), "--optimizer", options.optimizer]
    more += ["--chunk-size", str(options.chunk_size)]
    try:
        return run_child(__file__, role, backend, options.rounds, *more)
    except RuntimeError as error:
        if any(word in str(error) for word in ("OutOfMemory", "RESOURCE_EXHAUSTED")):
            return None
        raise


def main() -> None:
    """Measure every backend asked for, or act as one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["jax", "torch"])
    parser.add_argument("--batch-sizes", default="1,64,128,256")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--chunk-size", type=int, default=2048)
    parser.add_argument("--role", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        with contextlib.redirect_stdout(sys.stderr):
            found = our_steps(options) if options.role == "ours" else peer_steps(options)
        print(json.dumps(found))
        return
    # What the allocator counts is then what is used.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    backends = [options.backend] if options.backend else ["jax", "torch"]
    print(f"{'batch':>5} {'':12} {'step s':>8} {'ratio':>6} {'first s':>8} {'MFU':>6} {'MB':>8}")
    rows = []
    for batch in map(int, options.batch_sizes.split(",")):
        peer = measured_or_none("peer", "torch", batch, options)
        print(f"{batch:>5} {'published':12} {'':31} {PUBLISHED_MB.get(batch, ''):>8}")
        for name, found in [
            ("transformers", peer),
            *((backend, measured_or_none("ours", backend, batch, options)) for backend in backends),
        ]:
            rows.append({"batch": batch, "name": name, **(found or {"out_of_memory": True})})
            print(line(batch, name, found, peer), flush=True)
    print(json.dumps({"settings": vars(options), "figures": rows}))


def line(batch: int, name: str, found: dict | None, peer: dict | None) -> str:
    """Return a row of the table."""
    if found is None:
        return f"{batch:>5} {name:12} {'out of memory':>24}"
    ratio = f"{found['median'] / peer['median']:.2f}" if peer else ""
    mfu = f"{found['mfu']:.1%}" if found.get("mfu") else ""
    peak = f"{found['peak_mb']:,.0f}" if found["peak_mb"] else ""
    return (
        f"{batch:>5} {name:12} {found['median']:8.4f} {ratio:>6} {found['first']:8.1f} "
        f"{mfu:>6} {peak:>8}"
    )


if __name__ == "__main__":
    main()
