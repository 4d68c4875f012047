"""Small samples, and what encodes and draws them, for the tests of `data inspect`."""

import io
import json

import numpy as np
from PIL import Image

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.mixture_report import MixtureSampler
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

LENGTH = 96


def processor(**options):
    tokenizer = CharacterTokenizer(128)
    (image_id,) = tokenizer.add_special_tokens(["<image>"])
    settings = {"image_token_id": image_id, "tokens_per_image": 2, **options}
    return VQADataProcessor(4, LENGTH, tokenizer=tokenizer, **settings)


def png(size=(6, 9)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


def sample(name, answer, images=(), source="own"):
    return {
        "id": str(name),
        "source": source,
        "images": list(images),
        "messages": [
            {"role": "user", "content": "what?"},
            {"role": "assistant", "content": answer},
        ],
    }


def answers(count, length):
    """Samples whose answers have so many tokens: a space, letters, the end token."""
    return [sample(k, "a" * (length - 2)) for k in range(count)]


def draw(sources, shares, tokens, unit="answer_tokens", epochs=None):
    sampler = MixtureSampler(sources, processor())
    return sampler.draw(Mixture(shares, unit, epochs), tokens)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def question_rows(count, answer="red"):
    return [{"id": str(k), "question": "What?", "answer": answer} for k in range(count)]
