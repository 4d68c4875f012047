"""Ids and labels as text that shows what is learned, made with a tokenizer of bytes.

What is learned stands between « and ». `[image]` is an image's run of placeholders, and `\\<` a `<`
of ordinary text, so that `<|im_end|>` is always the one token and never its spelling.
"""

import itertools
import json

import numpy as np

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.planning import Planner
from dl_techniques.datasets.rows import IGNORE_INDEX, RowEncoder
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_templates import GHOSTVIS
from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer

PLACEHOLDER, TOKENS_PER_IMAGE = "<|image|>", 2
SPECIAL = ["<|pad|>", "<|begin|>", "<|endoftext|>", PLACEHOLDER, "<|im_start|>", "<|im_end|>"]
SPECIAL += list(GHOSTVIS.markers)
SPECIAL += ["<end_of_utterance>", "<|begin_of_text|>", "<fake_token_around_image>"]
SPECIAL += ["<global-img>", "<row_1_col_1>", "<row_1_col_2>"]


def tokenizer_of_bytes(folder):
    """Bytes as in GPT-2, of which two line feeds are one token: answers may begin with one."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    pieces = [*map(chr, own), *(chr(256 + n) for n in range(len(others)))]
    feed = pieces[len(own) + others.index(10)]
    vocab = {piece: n for n, piece in enumerate([*pieces, 2 * feed])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{feed} {feed}\n", encoding="utf-8")
    return HuggingFaceTokenizer.from_vocab_and_merges(
        folder / "vocab.json",
        folder / "merges.txt",
        pre_tokenizer="qwen2",
        special_tokens=SPECIAL,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|endoftext|>",
    )


def processor_of(tokenizer, template, length=512, **options):
    return VQADataProcessor(
        4,
        length,
        tokenizer=tokenizer,
        template=template,
        image_token_id=tokenizer.token_to_id(PLACEHOLDER),
        tokens_per_image=TOKENS_PER_IMAGE,
        max_bad_share=0.0,
        **options,
    )


def spelled(ids, tokenizer):
    """Text of ids, in which a special token is never mistaken for its spelling."""
    names = {i: token for token, i in tokenizer.special_tokens.items()}
    text = ""
    for name, run in itertools.groupby(map(int, ids), names.get):
        run = list(run)
        if name is None:
            text += tokenizer.decode(run).replace("<", "\\<")
        elif name == PLACEHOLDER:
            assert len(run) % TOKENS_PER_IMAGE == 0
            text += "[image]" * (len(run) // TOKENS_PER_IMAGE)
        else:
            text += name * len(run)
    return text


def learned_runs(labels):
    """Slices of the labels, in order, and whether each is learned."""
    learned = np.asarray(labels) != IGNORE_INDEX
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1), len(learned)]
    return [(slice(a, b), bool(learned[a])) for a, b in itertools.pairwise(edges)]


def marked(ids, labels, tokenizer):
    """Text of ids in which what the labels teach stands between « and »."""
    text = ""
    for run, learned in learned_runs(labels):
        if learned:
            np.testing.assert_array_equal(ids[run], labels[run])
        inside = spelled(ids[run], tokenizer)
        text += f"«{inside}»" if learned else inside
    return text


def packed(samples, processor, length):
    """The packed rows of samples, in their order."""
    planner = Planner(
        {"all": [samples]},
        RowEncoder(processor.encode, length),
        processor.tokenizer,
        Mixture(None, epochs=1),
        length,
        64,
        lambda image: 1,
    )
    rows = list(iter(planner.next_row, None))
    assert planner.take_bad() == []
    return rows


def documents(samples, processor):
    """(ids, labels) of what samples become, each read alone."""
    found = []
    for sample in samples:
        if "text" in sample:
            for row in packed([sample], processor, processor.max_text_length):
                arrays = row.arrays(processor.pad_token_id)
                real = arrays["segment_ids"] > 0
                found.append((arrays["text_tokens"][real], arrays["labels"][real]))
        else:
            encoder = RowEncoder(processor.encode, processor.max_text_length)
            found += [row.tokens() for row in encoder.rows(normalize_sample(sample, 0))]
    return found
