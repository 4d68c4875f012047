"""Conversion at true sizes: time and peak memory beside the file's size.

Each model gets random weights and is written in its reference format; then, each in a process of
its own, that folder is loaded, and written again from the loaded model. Run it once per backend:

    KERAS_BACKEND=jax python benchmarks/convert.py
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time

MODELS = {
    "nanoVLM-222M": ("nanovlm", "nanovlm_222m"),
    "nanoVLM-450M": ("nanovlm", "nanovlm_450m"),
    "nanoVLM-460M-8k": ("nanovlm", "nanovlm_460m_8k"),
    "SmolVLM-256M": ("smolvlm", "nanovlm_230m_8k"),
    "SmolLM2-135M": ("llama", "nanovlm_222m"),
    "SigLIP-B/16-224": ("siglip", "nanovlm_222m"),
}
MIB = 2**20


def export(model, folder, kind):
    """Write a whole model, or a part alone, in its reference format."""
    from dl_techniques import checkpoints

    if kind == "llama":
        checkpoints.export_decoder(model, folder)
    elif kind == "siglip":
        checkpoints.export_vision_encoder(model, folder)
    elif kind == "nanovlm":
        checkpoints.export_nanovlm(model, folder, None, "OWNER/NAME", image_mean=0, image_std=1)
    else:
        checkpoints.export_smolvlm(model, folder, image_mean=0.5, image_std=0.5)


def create(name):
    """Return a model or part with random weights, at true size."""
    from dl_techniques.models.nano_vlm import create_nanovlm

    kind, config = MODELS[name]
    changes = {}
    if kind == "smolvlm":
        from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS

        language = {**NANOVLM_CONFIGS[config]["language_config"], "tie_embeddings": False}
        changes = {"language_config": language, "vocab_size": 49280, "image_token_id": 49190}
    model = create_nanovlm(config, **changes)
    return {"llama": model.language_decoder, "siglip": model.vision_encoder}.get(kind, model)


def peak_mib():
    """Return this process's largest memory so far; `getrusage` would count its parent's too."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status).group(1)) / 1024


def load_and_export(name, folder):
    """Print seconds and extra memory of loading and of writing what was loaded."""
    from dl_techniques.checkpoints.converting import load_any
    from dl_techniques.models.nano_vlm import NanoVLM

    folder = pathlib.Path(folder)
    load_any(folder / "warm", NanoVLM, processor=None)  # What a backend needs itself.
    before = peak_mib()
    start = time.perf_counter()
    model = load_any(folder / "theirs", NanoVLM, processor=None)
    load_seconds = time.perf_counter() - start
    weights = sum(math.prod(v.shape) * 4 for v in model.weights) / MIB
    load_extra = peak_mib() - before - weights
    start = time.perf_counter()
    export(model, folder / "ours", MODELS[name][0])
    export_seconds = time.perf_counter() - start
    export_extra = peak_mib() - before - weights
    print(json.dumps([load_seconds, load_extra, export_seconds, export_extra]))


def warm_folder(folder, kind):
    """Write a tiny model of the same kind."""
    from dl_techniques.models.nano_vlm import NanoVLM

    bare = {"use_gelu": False, "use_layer_norm": False, "use_bias": False}
    model = NanoVLM(
        {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 1},
        {"hidden_dim": 8, "num_layers": 1, "num_heads": 1, "mlp_dim": 8},
        {"input_dim": 8, "output_dim": 8, "scale_factor": 2, **bare},
        vocab_size=8,
        image_token_id=7 if kind == "smolvlm" else None,
    )
    part = {"llama": model.language_decoder, "siglip": model.vision_encoder}.get(kind, model)
    export(part, folder, kind)


def tensor_facts(folder):
    """Return (largest tensor in MiB, digest of all tensors)."""
    from dl_techniques.checkpoints import Checkpoint

    digest, largest = hashlib.sha256(), 0
    with Checkpoint(folder) as checkpoint:
        for key in sorted(checkpoint.keys()):
            view = checkpoint.view(key)
            digest.update(key.encode() + view.tobytes())
            largest = max(largest, view.nbytes)
            checkpoint.forget()
    return largest / MIB, digest.hexdigest()


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return load_and_export(*arguments.child)
    print("extra memory: peak beyond the weights and what the backend takes for a tiny model, MiB")
    print(f"{'':17s} file MiB  largest  load s  extra  write s  extra")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            export(create(name), folder / "theirs", MODELS[name][0])
            warm_folder(folder / "warm", MODELS[name][0])
            command = [sys.executable, __file__, "--child", name, str(folder)]
            child = subprocess.run(command, capture_output=True, text=True, check=True)
            load, load_extra, write, write_extra = json.loads(child.stdout.splitlines()[-1])
            largest, digest = tensor_facts(folder / "theirs")
            if tensor_facts(folder / "ours") != (largest, digest):
                raise SystemExit(f"{name}: what was written differs from what was read.")
            size = (folder / "theirs/model.safetensors").stat().st_size / MIB
        print(
            f"{name:17s}{size:9.0f}{largest:9.0f}{load:8.1f}{load_extra:7.0f}"
            f"{write:9.1f}{write_extra:7.0f}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
