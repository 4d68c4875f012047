"""What tokenizers make of ids that come bit by bit."""

import numpy as np
import pytest

from dl_techniques.generation.text_stream import TextStream


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_text_of_all_ids(tokenizer, seed):
    rng = np.random.default_rng(seed)
    specials = list(tokenizer.special_tokens.values())
    ids = rng.integers(0, tokenizer.vocab_size, 60)
    ids[rng.uniform(size=60) < 0.2] = rng.choice(specials)
    ids = ids.tolist()
    calls = []

    def decode(some):
        calls.append(len(some))
        return tokenizer.decode(some, skip_special=True)

    stream, text, done = TextStream(decode), "", 0
    while done < len(ids):
        width = int(rng.integers(1, 5))
        text += stream.push(ids[done : done + width])
        done += width
    assert text + stream.finish() == tokenizer.decode(ids, skip_special=True).strip()
    assert np.mean(calls) < 12  # Not everything again and again.
