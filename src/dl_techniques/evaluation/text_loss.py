"""How well a model predicts plain texts, such as those that training must not unlearn."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dl_techniques.datasets.sources import open_source
from dl_techniques.evaluation.intervals import bootstrap_interval, mean_figure
from dl_techniques.evaluation.metrics import bits_per_byte, perplexity

TEXT_LOSS = "text_loss"
MOST_TOKENS = 1024  # Of a part, and of the parts that are scored together.
# Figure -> its unit, and its value for the sums of losses in nats, tokens and bytes.
_FIGURES = {
    TEXT_LOSS: ("nats a token", mean_figure),
    "text_perplexity": ("", lambda t: perplexity(-t[..., 0], t[..., 1])),
    "text_bits_per_byte": ("bits a byte", lambda t: bits_per_byte(-t[..., 0], t[..., 2])),
}


def read_texts(data: str | Path, split: str = "train") -> list[str]:
    """Return the plain texts of a file, or of a split of a folder or of the folder `text` in it.

    Raises:
        ValueError: if there are none.
    """
    inside = Path(data) / "text"
    source = open_source(inside if inside.is_dir() else data, split=split)
    samples = (sample for row in range(len(source)) for sample in source[row])
    texts = [sample["text"] for sample in samples if sample.get("text")]
    if not texts:
        raise ValueError(f"{data} has no plain text: expected .txt files, or rows with 'text'.")
    return texts


def text_loss(model, texts: Sequence[str], batch_size: int = 8) -> dict[str, dict]:
    """Return `text_loss`, `text_perplexity` and `text_bits_per_byte` of texts.

    Every token counts once, the first one given the token that begins documents. A long text is cut
    into parts of `MOST_TOKENS`, or of the model's positions; each is given the last token of the
    one before. Special tokens in a text are read as text.

    Args:
        model: A `VisionLanguageModel` with its processor.
        texts: Without empty ones.
        batch_size: The most parts at a time.

    Returns:
        Name -> `value`, `low` and `high` (95 %, the texts drawn anew), and `unit`.

    Raises:
        ValueError: if the tokenizer has no token that begins or ends documents.
    """
    tokenizer = model.processor.tokenizer
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise ValueError("The tokenizer has neither a bos nor an eos token to begin a text with.")
    room = min(MOST_TOKENS, model.language_decoder.max_positions - 1)
    parts = []
    table = np.zeros((len(texts), 3))
    for number, text in enumerate(texts):
        ids = [first, *tokenizer.encode(text)]
        starts = range(0, len(ids) - 1, room)
        parts += [(number, ids[k], ids[k + 1 : k + 1 + room]) for k in starts]
        table[number, 1:] = len(ids) - 1, len(text.encode())
    for batch in _batches(parts, batch_size):
        numbers, before, rest = zip(*batch, strict=True)
        scores = model.score({"text_tokens": np.array(before, "int32")[:, None]}, list(rest))
        for number, score in zip(numbers, scores, strict=True):
            table[number, 0] -= score.total
    return {
        name: {**vars(bootstrap_interval(table, figure)), "unit": unit}
        for name, (unit, figure) in _FIGURES.items()
    }


def _batches(parts: list, size: int) -> Iterator[list]:
    """Yield parts of like lengths together, `MOST_TOKENS` with padding at most."""
    batch: list = []
    for part in sorted(parts, key=lambda part: len(part[2])):
        if batch and (len(batch) == size or (len(batch) + 1) * len(part[2]) > MOST_TOKENS):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch
