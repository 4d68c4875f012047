"""Times the preparation of images beside transformers' processors, and the whole data pipeline.

    python benchmarks/data.py [--images 40]

`tiles_512`: photos of 640 x 480 pixels to SmolVLM's tiles of 512 pixels. `stretch_224`: the same
to SigLIP's 224 pixels. From JPEG bytes to normalised float32, on one thread, each side in turn in
one process. `pipeline`: packed rows of 512 tokens with 224-pixel images, in tokens/s.
transformers' fast processors are timed where torchvision is installed. Needs dl_techniques[dev].
"""

import argparse
import importlib.util
import io
import json
import time

import numpy as np
from PIL import Image

SIZE = (640, 480)


def photos(count: int) -> list[bytes]:
    """Return JPEG files with smooth and noisy parts."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        small = rng.integers(0, 256, (12, 16, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def ours(name: str):
    """Return JPEG bytes -> float32[n, H, W, 3]."""
    from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
    from dl_techniques.preprocessing.images import ImageProcessor

    processor = Idefics3ImageProcessor() if name == "tiles_512" else ImageProcessor(224)
    return lambda data: processor.normalize(processor.tiles(data).pixels)


def peers(name: str) -> dict:
    """Return name -> (JPEG bytes -> pixel values) of transformers' processors."""
    import transformers

    kinds = {"tiles_512": "Idefics3ImageProcessor", "stretch_224": "SiglipImageProcessor"}
    options = {
        "tiles_512": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        "stretch_224": {"size": {"height": 224, "width": 224}},
    }[name]
    found = {}
    for label, suffix, tensors in (("slow", "Pil", "np"), ("fast", "", "pt")):
        if label == "fast" and importlib.util.find_spec("torchvision") is None:
            continue
        processor = getattr(transformers, kinds[name] + suffix)(**options)

        def prepare(data, processor=processor, tensors=tensors):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            return processor(image, return_tensors=tensors)["pixel_values"]

        found[label] = prepare
    return found


def per_second(prepare, files: list[bytes]) -> float:
    """Return the best of three passes, in images/s."""
    prepare(files[0])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for data in files:
            prepare(data)
        times.append(time.perf_counter() - began)
    return len(files) / min(times)


def pipeline(files: list[bytes], rows: int = 60) -> dict:
    """Return tokens/s and images/s of packed rows, with one worker thread."""
    from dl_techniques.datasets.mixture import Mixture
    from dl_techniques.datasets.stream import StreamSettings, TrainingStream
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor
    from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer

    words = "what colour is the round object near the old wooden table in this picture".split()
    rng = np.random.default_rng(0)
    samples = []
    for number in range(2000):
        question = " ".join(rng.choice(words, rng.integers(4, 20)))
        answer = " ".join(rng.choice(words, rng.integers(1, 30)))
        samples.append(
            {
                "id": str(number),
                "images": [files[number % len(files)]],
                "messages": [
                    {"role": "user", "content": question + "?"},
                    {"role": "assistant", "content": answer},
                ],
            }
        )
    texts = [m["content"] for sample in samples[:500] for m in sample["messages"]]
    tokenizer = SentencePieceTokenizer.train(texts, 320, special_tokens=["<|image|>"])
    processor = VQADataProcessor(
        224,
        512,
        tokenizer=tokenizer,
        image_token_id=tokenizer.token_to_id("<|image|>"),
        tokens_per_image=49,
    )
    settings = StreamSettings(length=512, batch_size=4)
    iterator = iter(TrainingStream({"a": samples}, processor, Mixture({"a": 1.0}), settings))
    next(iterator)
    began, tokens, images = time.perf_counter(), 0, 0
    for _ in range(rows // 4):
        inputs, _ = next(iterator)
        tokens += int(inputs["attention_mask"].sum())
        images += int(inputs["num_images"].sum())
    seconds = time.perf_counter() - began
    iterator.close()
    return {"tokens_per_second": tokens / seconds, "images_per_second": images / seconds}


def main():
    """Print a table, then all figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    files, figures = photos(arguments.images), {}
    print(f"{'':14s}{'ours':>10s}{'slow':>10s}{'fast':>10s}{'ratio':>8s}  images/s")
    for name in ("tiles_512", "stretch_224"):
        chosen = files[: max(4, len(files) // 5)] if name == "tiles_512" else files
        mine = per_second(ours(name), chosen)
        theirs = {label: per_second(prepare, chosen) for label, prepare in peers(name).items()}
        ratio = mine / max(theirs.values())
        figures[name] = {"ours": mine, **theirs, "ratio": ratio}
        cells = [
            f"{theirs[label]:10.1f}" if label in theirs else f"{'-':>10s}"
            for label in ("slow", "fast")
        ]
        print(f"{name:14s}{mine:10.1f}{''.join(cells)}{ratio:8.2f}")
    figures["pipeline"] = pipeline(files)
    print(
        f"pipeline: {figures['pipeline']['tokens_per_second']:,.0f} tokens/s, "
        f"{figures['pipeline']['images_per_second']:,.0f} images/s"
    )
    print(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
