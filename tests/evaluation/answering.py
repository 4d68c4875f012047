"""A model that answers from a table, and small data sets for it."""

import json
from types import SimpleNamespace

import numpy as np
from tiny_models import IMAGE_SIZE, tiny_nanovlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.run import RunSettings, answer_task, collect
from dl_techniques.generation.sampling import GREEDY
from dl_techniques.preprocessing.images import load_image
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer


def character_model():
    """Return a tiny NanoVLM, of random weights, that reads and writes characters."""
    tokenizer = CharacterTokenizer(128)
    image_id = tokenizer.add_special_tokens(["<|image|>"])[0]
    model = tiny_nanovlm(vocab_size=tokenizer.vocab_size, image_token_id=image_id)
    model.processor = VQADataProcessor(
        IMAGE_SIZE, 64, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=4
    )
    return model


ORIGIN = {"model": "oracle", "checkpoint": "d1"}


class Oracle:
    """Answers "yes" to a picture that is not grey; `answers` overrides by the text.

    Attributes:
        asked: The texts of each call.
    """

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def generate(self, conversations, max_new_tokens, sampler=GREEDY, seed=0):
        assert sampler.is_greedy
        assert all(len(messages) == 1 for messages in conversations)
        self.asked.append([text_of(messages) for messages in conversations])
        return [f" {self._answer(messages)}\n" for messages in conversations]

    def score(self, conversations, answers):
        liked = [self.answers.get(text_of(messages)) for messages in conversations]
        return [
            SimpleNamespace(total=0.0 if answer == best else -9.0)
            for answer, best in zip(answers, liked, strict=True)
        ]

    def _answer(self, messages):
        text = text_of(messages)
        if text in self.answers:
            return self.answers[text]
        pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        grey = all((np.asarray(load_image(image)) == 127).all() for image in pictures)
        return "no" if grey else "yes"


def text_of(messages):
    """Return the text of a conversation's message."""
    return "".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")


def write_lines(path, rows):
    """Write a JSONL file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(model, task, questions, folder, blank_images=False, digest="d1", **settings):
    """Ask everything and return the results, None if some are missing."""
    settings = RunSettings(**settings)
    answer_task(model, task, questions, folder, settings, digest, blank_images)
    return collect(task, questions, folder, settings, {**ORIGIN, "checkpoint": digest}, "again")
