"""Times generation of the 222M NanoVLM beside transformers' SmolVLM of the same sizes.

    python benchmarks/generate.py [--backend jax] [--rounds 5] [--precision bfloat16]

float32 by default, on a GPU where there is one; one 224-pixel image (49 tokens) in a prompt of 128
tokens, 64 new tokens, greedy. The peer is PyTorch eager with its cache, as transformers' users run
it. Speeds are in new tokens/s after the first; `first_token` is the time from pixels to the first
new token; `roofline_share` is ours: the bytes of weights and cache that a token needs, over what
the machine reads in that time (measured in the same run; batch 1). Needs
dl_techniques[dev] and the backends.
"""

import argparse
import json
import resource
import time

import numpy as np
from side_by_side import figure, print_report, run_child
from smolvlm_peer import IMAGE_ID, IMAGE_SIZE, IMAGE_TOKENS, VOCABULARY, smolvlm, smolvlm_inputs

LENGTH, NEW, BATCHES = 128, 64, (1, 8)


def prompts(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [B, H, W, 3] and ids [B, S]."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype("float32")
    ids = rng.integers(3, VOCABULARY - 1, (batch, LENGTH)).astype("int32")
    ids[:, :IMAGE_TOKENS] = IMAGE_ID
    return pixels, ids


def our_model(precision: str):
    """Return prompts -> a function of the number of new tokens."""
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()
    import keras

    keras.config.set_dtype_policy(precision)
    from dl_techniques.models.nano_vlm import create_nanovlm_222m

    model = create_nanovlm_222m(image_token_id=IMAGE_ID)

    def prepared(pixels, ids):
        inputs = {"images": pixels, "text_tokens": ids}
        return lambda new: model.generate(inputs, new)

    return prepared


def peer_model(precision: str):
    """Return prompts -> a function of the number of new tokens."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = smolvlm().eval().to(device, getattr(torch, precision))

    def prepared(pixels, ids):
        inputs = smolvlm_inputs(pixels, ids, device=device)

        def run(new):
            with torch.inference_mode():
                return model.generate(
                    **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False
                ).cpu()

        return run

    return prepared


def measure(prepared, rounds: int) -> dict:
    """Return medians of the time to the first token and of the tokens/s after it."""
    result = {}
    for batch in BATCHES:
        run = prepared(*prompts(batch))
        first, speed = [], []
        for turn in range(rounds + 1):
            began = time.perf_counter()
            run(1)
            middle = time.perf_counter()
            run(NEW)
            whole = time.perf_counter() - middle
            if turn:
                first.append(middle - began)
                speed.append(batch * (NEW - 1) / (whole - first[-1]))
        result[f"first_b{batch}"] = float(np.median(first))
        result[f"decode_b{batch}"] = float(np.median(speed))
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def memory_bandwidth() -> float:
    """Return the bytes/s at which all cores together read memory (median of 21 times)."""
    import torch

    data = torch.ones(2**27, device="cuda" if torch.cuda.is_available() else "cpu")
    times = []
    for _ in range(21):
        began = time.perf_counter()
        data.sum().item()
        times.append(time.perf_counter() - began)
    return data.nbytes / sorted(times)[10]


def bytes_per_token(precision: str) -> int:
    """Return what decoding one token at batch 1 must read: weights, and half the cache's tokens."""
    layers, width, mlp, heads, kv_heads, head = 30, 576, 1536, 9, 3, 64
    weights = layers * (width * head * (2 * heads + 2 * kv_heads) + 3 * width * mlp)
    cache = layers * 2 * kv_heads * head * (LENGTH + NEW // 2)
    return (4 if precision == "float32" else 2) * (weights + VOCABULARY * width + cache)


def main() -> None:
    """Measure every backend asked for, or act as one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["jax", "tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--role", choices=["ours", "peer", "bandwidth"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "bandwidth":
        print(json.dumps({"bandwidth": memory_bandwidth()}))
        return
    if options.role:
        model = (our_model if options.role == "ours" else peer_model)(options.precision)
        print(json.dumps(measure(model, options.rounds)))
        return
    figures = []
    for backend in [options.backend] if options.backend else ["jax", "tensorflow", "torch"]:
        bandwidth = run_child(__file__, "bandwidth", backend, 1)["bandwidth"]
        peer, ours = (
            run_child(__file__, r, backend, options.rounds, "--precision", options.precision)
            for r in ("peer", "ours")
        )
        for batch in BATCHES:
            key = f"decode_b{batch}"
            figures.append(figure(key, backend, ours[key], peer[key], "tokens/s"))
        for batch in BATCHES:
            name = "first_token" if batch == 1 else f"first_token_b{batch}"
            key = f"first_b{batch}"
            figures.append(figure(name, backend, ours[key], peer[key], "s"))
        ours_share, peer_share = (
            x["decode_b1"] * bytes_per_token(options.precision) / bandwidth for x in (ours, peer)
        )
        figures.append(figure("roofline_share", backend, ours_share, peer_share, "of 1"))
        figures.append(figure("peak_memory", backend, ours["peak_mb"], peer["peak_mb"], "MB"))
        print(f"{backend}: memory is read at {bandwidth / 1e9:.1f} GB/s")
    print_report(figures)


if __name__ == "__main__":
    main()
