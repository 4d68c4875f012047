"""Plain texts as training rows: all of a text is learned, cut into rows where it is long."""

from typing import Any

import numpy as np

from dl_techniques.datasets.rows import BadSampleError, Row
from dl_techniques.preprocessing.tokenizer_base import Tokenizer


def text_rows(sample: dict[str, Any], number: int, tokenizer: Tokenizer, length: int) -> list[Row]:
    """Returns the rows of a plain text, with the tokenizer's end token behind it.

    Args:
        sample: a dict with `text`, and optionally `id` and `source`.
        number: names the sample if it has no id.
        tokenizer: encodes the text.
        length: the longest row, in tokens.

    Raises:
        BadSampleError: fewer than two tokens, end included.
    """
    ids = tokenizer.encode(sample["text"])
    if not ids:
        raise BadSampleError("empty text", "The text has no tokens.")
    if tokenizer.eos_id is not None:
        ids.append(tokenizer.eos_id)
    if len(ids) < 2:
        raise BadSampleError("empty text", "A single token has none before it to learn from.")
    tokens = np.array(ids, np.int32)
    starts = list(range(0, len(tokens), length))
    if starts[-1] == len(tokens) - 1:  # The end alone could not be learned.
        starts[-1] -= 1
    name, source = str(sample.get("id", number)), str(sample.get("source", ""))
    parts = np.split(tokens, starts[1:])
    return [Row(name, source, [], [(part, part)], []) for part in parts]
