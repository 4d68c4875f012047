"""Measures what images cost: preparing, caching, encoding them, and their tokens in the decoder.

    KERAS_BACKEND=jax python benchmarks/vision.py [--size tiny] [--rounds 3]

The encoder is the ViT of the guide's NVLM (384 pixels, patches of 14, 24 blocks of width 1024 with
16 heads) made smaller for a CPU: "tiny" has 2 blocks of width 256 with 4 heads, "base" 4 blocks of
the full width. All times are medians of `--rounds` calls after one that does not count; float32.

- preparing: JPEG files of 640 x 480 pixels to the model's 384, one after the other, and by the
  workers of a training stream (their start is not counted).
- cache: from a question with its picture's file to the decoder's inputs, by `VisionCache`, which
  was told that the encoder's weights stay (as the server tells it), or looks whether they did.
- encoding: images/s of the encoder alone.
- tokens: a forward pass of one row of 64 text tokens and one image, whose tokens are left as they
  are (729), or made fewer by `VisionTokenCompressor` or `VisionResampler`. The decoder's own time
  is that with embeddings given. Memory is what the process has resident at the peak of the pass
  beyond what it has before it, weights aside (Linux alone). The overhead is over text only.
"""

import argparse
import functools
import json
import os
import statistics
import time

import numpy as np
from data import photos

SIZES = {
    "tiny": {
        "vision": {"embed_dim": 256, "depth": 2, "num_heads": 4},
        "language": {"hidden_dim": 256, "num_layers": 2, "num_heads": 8, "mlp_dim": 688},
        "vocab_size": 2048,
        "images": 40,
    },
    "base": {
        "vision": {"embed_dim": 1024, "depth": 4, "num_heads": 16},
        "language": {"hidden_dim": 1024, "num_layers": 8, "num_heads": 16, "mlp_dim": 2752},
        "vocab_size": 8192,
        "images": 120,
    },
}
IMAGE_SIZE, TEXT_TOKENS = 384, 64
KEPT = (256, 144, 64)
IMAGE_ID = 100
WARM_UP = 1


def median_ms(call, rounds: int) -> float:
    """Return the median time of a call in ms."""
    times = []
    for _ in range(WARM_UP + rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[WARM_UP:])


def preparing(files: list[bytes], workers: int) -> dict:
    """Return images/s of one thread, of threads and of processes."""
    from dl_techniques.datasets.image_store import whole_tiles
    from dl_techniques.datasets.worker_pool import worker_pool
    from dl_techniques.preprocessing.images import ImageProcessor

    prepare = functools.partial(whole_tiles, ImageProcessor(IMAGE_SIZE))

    def per_second(run):
        run()
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return len(files) / min(times)

    found = {"serial": per_second(lambda: [prepare(file) for file in files])}
    for kind in ("thread", "process"):
        with worker_pool(workers, kind) as pool:
            found[kind] = per_second(lambda pool=pool: list(pool.map(prepare, files)))
    return found


def new_model(size: dict, **parts):
    """Return an NVLM ("decoder"), or with a resampler a GhostVis."""
    from dl_techniques.models.ghost_vis import GhostVis
    from dl_techniques.models.nvlm import NVLM

    width = size["language"]["hidden_dim"]
    arguments = {
        "vision_config": {"img_size": IMAGE_SIZE, "patch_size": 14, **size["vision"]},
        "language_config": {**size["language"], "max_positions": 2048},
        "projector_config": {"output_dim": width, "hidden_dim": width, "use_layer_norm": False},
        "vocab_size": size["vocab_size"],
        "image_token_id": IMAGE_ID,
    }
    if "resampler_config" in parts:
        return GhostVis(**arguments, **parts)
    return NVLM("decoder", **arguments, scale_factor=None, **parts)


def caching(size: dict, file: bytes, rounds: int) -> dict:
    """Return ms from a question with a picture to the decoder's inputs, found and not found."""
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor
    from dl_techniques.generation import VisionCache
    from dl_techniques.generation.prompts import prompt_batch, read_prompt
    from dl_techniques.generation.vision_cache import encoder_digest
    from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

    model = new_model(size)
    tokenizer = CharacterTokenizer(IMAGE_ID)
    image_id = tokenizer.add_special_tokens(["<|image|>"])[0]
    model.image_token_id = image_id
    model.processor = VQADataProcessor(
        IMAGE_SIZE,
        1024,
        tokenizer=tokenizer,
        image_token_id=image_id,
        tokens_per_image=model.tokens_per_image,
    )
    engine = model.generation_engine()
    told, looks = VisionCache(encoder=encoder_digest(model)), VisionCache()
    messages = [{"role": "user", "content": "what is it?", "image": file}]

    def ask(cache):
        prompt = read_prompt(model.processor, messages)
        return _done(prompt_batch(engine, model, [prompt], cache)["vision_embeds"])

    def ask_anew():
        told.clear()
        ask(told)

    return {
        "miss": median_ms(ask_anew, rounds),
        "hit": median_ms(lambda: ask(told), rounds),
        "hit, looks": median_ms(lambda: ask(looks), rounds),
    }


def _done(x) -> np.ndarray:
    """Wait until x is computed."""
    from keras import ops

    return ops.convert_to_numpy(x)


def encoding(size: dict, rounds: int) -> dict:
    """Return "batch x pixels" -> images/s of the encoder."""
    import keras

    from dl_techniques.layers.vision_transformer import VisionTransformer

    found = {}
    for batch, pixels in ((1, 384), (4, 384), (8, 384), (1, 768)):
        encoder = VisionTransformer(pixels, 14, **size["vision"])
        model = keras.Sequential([keras.Input((pixels, pixels, 3)), encoder])
        images = np.zeros((batch, pixels, pixels, 3), "float32")
        ms = median_ms(lambda model=model, images=images: model.predict_on_batch(images), rounds)
        found[f"{batch} x {pixels}"] = 1e3 * batch / ms
    return found


def token_counts(size: dict, rounds: int) -> list[dict]:
    """Return time and memory of forward passes with fewer and fewer image tokens."""
    from dl_techniques.utils.resident_memory import (
        give_back_freed_memory,
        peak_resident_bytes,
        reset_peak,
        resident_bytes,
    )

    width = size["vision"]["embed_dim"]
    cases = [("text only", {}, False), ("all", {}, True)]
    for count in KEPT:
        compressor = {"input_dim": width, "num_queries": count, "num_heads": 8}
        cases.append((f"compressor {count}", {"compressor_config": compressor}, True))
    for count in KEPT:
        resampler = {"num_tokens": count, "depth": 2, "num_heads": 8}
        cases.append((f"resampler {count}", {"resampler_config": resampler}, True))
    models = [new_model(size, **parts) for _, parts, _ in cases]
    batches = [
        forward_inputs(size, model, case[2]) for model, case in zip(models, cases, strict=True)
    ]
    rows = []
    for (name, _, _), model, (inputs, given) in zip(cases, models, batches, strict=True):
        ms, decoder = (
            median_ms(lambda model=model, x=x: model.predict_on_batch(x), rounds)
            for x in (inputs, given)
        )
        tokens = inputs["text_tokens"].shape[1] - TEXT_TOKENS
        rows.append({"name": name, "tokens": tokens, "ms": ms, "decoder_ms": decoder})
    # After all times: memory that goes back to the system at once is slow memory.
    give_back_freed_memory()
    for row, model, (inputs, _) in zip(rows, models, batches, strict=True):
        row["overhead"] = row["ms"] / rows[0]["ms"]
        reset_peak()
        before = resident_bytes()
        model.predict_on_batch(inputs)
        row["mb"] = (peak_resident_bytes() - before) / 1e6
    return rows


def forward_inputs(size: dict, model, has_image: bool) -> tuple[dict, dict]:
    """Return the inputs of a pass, with the image and with its embeddings in its place."""
    tokens = model.tokens_per_image if has_image else 0
    ids = np.full((1, tokens + TEXT_TOKENS), 7, "int32")
    ids[:, :tokens] = IMAGE_ID
    inputs = {"text_tokens": ids}
    if not has_image:
        return inputs, inputs
    image = np.zeros((1, 1, IMAGE_SIZE, IMAGE_SIZE, 3), "float32")
    embeds = np.zeros((1, 1, tokens, size["language"]["hidden_dim"]), "float32")
    return {**inputs, "images": image}, {**inputs, "vision_embeds": embeds}


def main() -> None:
    """Print the tables, then all figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()  # As the command line does.
    import keras

    size, rounds = SIZES[options.size], options.rounds
    files = photos(size["images"])
    backend = keras.backend.backend()
    print(f"{backend}, size {options.size}, {size['vision']}, {options.workers} workers")
    figures = {"preparing": preparing(files, options.workers)}
    serial = figures["preparing"]["serial"]
    print(f"\n{'preparing':<18}{'images/s':>10}{'ratio':>8}")
    for name, value in figures["preparing"].items():
        print(f"{name:<18}{value:>10.1f}{value / serial:>8.2f}")
    figures["cache"] = caching(size, files[0], rounds)
    print(f"\n{'cache':<18}{'ms':>10}")
    for name, value in figures["cache"].items():
        print(f"{name:<18}{value:>10.1f}")
    figures["encoding"] = encoding(size, rounds)
    print(f"\n{'batch x pixels':<18}{'images/s':>10}")
    for name, value in figures["encoding"].items():
        print(f"{name:<18}{value:>10.2f}")
    figures["tokens"] = token_counts(size, rounds)
    print(f"\n{'image tokens':<18}{'tokens':>10}{'ms':>9}{'decoder':>9}{'MB':>9}{'overhead':>10}")
    for row in figures["tokens"]:
        print(
            f"{row['name']:<18}{row['tokens']:>10}{row['ms']:>9.1f}{row['decoder_ms']:>9.1f}"
            f"{row['mb']:>9.1f}{row['overhead']:>10.2f}"
        )
    print(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
