"""Streams a large made data set once and prints how the process's memory grows.

    python benchmarks/data_memory.py [--rows 1000000] [--kind parquet]

Every tenth row has a picture of 32 pixels, one in a thousand is broken. Rows are packed to 1,024
tokens. Printed are the resident memory in MiB after opening, after 1 % of the rows and at the end,
and the largest; and the rows and tokens per second of planning, packing and decoding together.
"""

import argparse
import io
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int) -> bytes:
    """Return a PNG file; one in a hundred is broken."""
    file = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(number % 64).integers(0, 256, 3))
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue() if number % 100 else b"broken"


def rows(count: int):
    """Yield rows in The Cauldron's layout."""
    pictures = [picture(k) for k in range(6400)]
    for number in range(count):
        images = [{"bytes": pictures[number // 10 % 6400], "path": None}] * (number % 10 == 0)
        text = {"user": f"What is {number}?", "assistant": "It is " + "a " * (number % 37) + "."}
        yield {"images": images, "texts": [{**text, "source": "made"}]}


def write(folder: Path, kind: str, count: int) -> None:
    """Write the rows as parquet shards, or as one JSONL file of chats without pictures."""
    if kind == "jsonl":
        with (folder / "rows.jsonl").open("w") as file:
            for row in rows(count):
                (text,) = row["texts"]
                line = {"question": text["user"], "answer": text["assistant"]}
                file.write(json.dumps(line) + "\n")
        return
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    made, shard = rows(count), 50_000
    for start in range(0, count, shard):
        table = arrow.Table.from_pylist([next(made) for _ in range(min(shard, count - start))])
        parquet.write_table(table, folder / f"{start:09d}.parquet", row_group_size=1000)


def resident() -> float:
    """Return the memory in MiB that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main():
    """Write the rows, stream them once, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("parquet", "jsonl"), default="parquet")
    arguments = parser.parse_args()

    from dl_techniques.datasets.mixture import Mixture
    from dl_techniques.datasets.sources import open_source
    from dl_techniques.datasets.stream import StreamSettings, TrainingStream
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor
    from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, whose memory is not counted.
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(folder, arguments.kind, arguments.rows)
        )
        writer.start()
        writer.join()
        tokenizer = CharacterTokenizer(256)
        (image_id,) = tokenizer.add_special_tokens(["<|image|>"])
        processor = VQADataProcessor(
            32, 1024, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=4
        )
        figures = {"imports": resident()}
        source = open_source(folder)
        figures["open"] = resident()
        stream = TrainingStream(
            {"made": source},
            processor,
            Mixture({"made": 1.0}, epochs=1),
            StreamSettings(1024, batch_size=8),
            quarantine=folder / "quarantine.jsonl",
        )
        iterator, began, tokens = iter(stream), time.perf_counter(), 0
        for inputs, _ in iterator:
            tokens += int(inputs["attention_mask"].sum())
            if "1 %" not in figures and iterator.report().total >= len(source) / 100:
                figures["1 %"] = resident()
        seconds = time.perf_counter() - began
        figures["end"] = resident()
        figures["state KiB"] = len(json.dumps(iterator.get_state())) / 1024
        iterator.close()
        bad = len(iterator.report())
    figures["largest"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    print(
        f"{arguments.rows:,} rows, {bad:,} bad, {tokens:,} tokens: {arguments.rows / seconds:,.0f} "
        f"rows/s, {tokens / seconds:,.0f} tokens/s"
    )
    print(json.dumps({"figures": {**figures, "rows_per_second": arguments.rows / seconds}}))


if __name__ == "__main__":
    main()
