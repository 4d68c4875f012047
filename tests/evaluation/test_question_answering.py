"""Asking a model and scoring its answers."""

import numpy as np
import pytest
from tiny_models import IMAGE_SIZE, random_images, tiny_nanovlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.asking import without_pictures
from dl_techniques.evaluation.question_answering import (
    AnsweredQuestion,
    answer_questions,
    message_text,
    question_message,
    sample_questions,
    share_correct,
)
from dl_techniques.generation.sampling import Sampler
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer


def answered(answer, *references, kind="question"):
    return AnsweredQuestion("id", kind, [], "Which?", list(references), answer)


@pytest.mark.parametrize(
    ("answer", "references", "correct"),
    [
        ("Red", ["red"], True),
        ("  two\n  cats ", ["Two cats"], True),
        ("never", ["no", "never"], True),
        ("red", ["dark red"], False),
        ("red.", ["red"], False),
        ("", ["red"], False),
        ("twocats", ["two cats"], False),
    ],
)
def test_an_answer_is_right_if_it_equals_a_reference(answer, references, correct):
    assert answered(answer, *references).correct is correct


def test_share_correct_counts_kinds_apart():
    items = [
        answered("2", "2", kind="count"),
        answered("3", "2", kind="count"),
        answered("red", "red", kind="colour"),
        answered("no", "yes", kind="count"),
    ]
    found = share_correct(items)
    assert found == {"all": (0.5, 4), "count": (1 / 3, 3), "colour": (1.0, 1)}
    assert list(found)[0] == "all"


def test_share_correct_of_one_nameless_kind_is_one_row():
    assert share_correct([answered("a", "a"), answered("b", "a")]) == {"all": (0.5, 2)}


def test_message_text_joins_parts():
    parts = [{"type": "text", "text": "What "}, {"type": "image", "image": "x.png"}]
    parts.append({"type": "text", "text": "is it?"})
    assert message_text({"role": "user", "content": parts}) == "What is it?"
    assert message_text({"role": "user", "content": "Why?"}) == "Why?"


@pytest.fixture(scope="module")
def model():
    tokenizer = CharacterTokenizer(128)
    image_id = tokenizer.add_special_tokens(["<|image|>"])[0]
    processor = VQADataProcessor(
        IMAGE_SIZE, 64, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=4
    )
    model = tiny_nanovlm(vocab_size=processor.vocab_size, image_token_id=image_id)
    model.processor = processor
    return model


def picture(seed):
    return np.uint8(127.5 * (1 + random_images(seed=seed)))


def turn(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SAMPLES = [
    {
        "id": "a",
        "images": [picture(1)],
        "messages": turn("Why?", "So") + turn("How many are there?", "2"),
        "kinds": ["reason", "count"],
        "references": [["So", "because"], ["2"]],
    },
    {"id": "b", "images": [picture(2), picture(3)], "messages": turn("Both <|image|>?", "No")},
    {"id": "c", "images": [], "messages": turn("Is anything here at all?", "Yes")},
]
SAMPLES[1]["messages"][0]["content"] = "Is <|image|> like <|image|>?"


def test_questions_keep_their_own_ids_kinds_and_references(model):
    found = answer_questions(model, SAMPLES, 4, 3)
    assert [(q.id, q.kind, q.references) for q in found] == [
        ("a-0", "reason", ["So", "because"]),
        ("a-1", "count", ["2"]),
        ("b", "question", ["No"]),
        ("c", "question", ["Yes"]),
    ]
    assert [len(q.images) for q in found] == [1, 1, 2, 0]
    assert found[1].question == "How many are there?"


def test_a_ragged_batch_answers_as_single_questions(model):
    batched = answer_questions(model, SAMPLES, 4, 8)
    single = answer_questions(model, SAMPLES, 1, 8)
    assert [q.answer for q in batched] == [q.answer for q in single]
    assert len({q.answer for q in batched}) > 1


def test_a_question_is_asked_as_its_sample_begins_in_training(model):
    question, row = sample_questions(SAMPLES[1])[0], model.processor.process(SAMPLES[1])
    prompt = model.processor.encode_prompt([question_message(question)])
    assert prompt.images == SAMPLES[1]["images"]
    assert prompt.token_ids == row["text_tokens"][: len(prompt.token_ids)].tolist()
    answer = row["labels"][len(prompt.token_ids) :]
    assert (answer != -100).all() and (row["labels"] != -100).sum() == len(answer)


def test_answers_are_without_blanks_and_drawn_by_number():
    class Parrot:
        def __init__(self):
            self.seeds = []

        def generate(self, conversations, max_new_tokens, sampler, seed):
            assert max_new_tokens == 9 and sampler == Sampler(temperature=2.0)
            self.seeds.append(seed)
            return [" yes\n"] * len(conversations)

    parrot = Parrot()
    found = answer_questions(parrot, SAMPLES, 3, 9, sampler=Sampler(temperature=2.0), seed=5)
    assert [q.answer for q in found] == ["yes"] * 4
    assert parrot.seeds == [5, 8]


def test_blank_images_take_the_pictures_away(model):
    wide = {**sample_questions(SAMPLES[1])[0], "images": [picture(2)[:6], picture(3)]}
    message = question_message(wide)
    blank = without_pictures(message)
    texts, blank_texts = (
        [p for p in m["content"] if p["type"] == "text"] for m in (message, blank)
    )
    assert texts == blank_texts and len(message["content"]) == len(blank["content"])
    pictures = [part["image"] for part in blank["content"] if part["type"] == "image"]
    assert [p.size for p in pictures] == [(IMAGE_SIZE, 6), (IMAGE_SIZE, IMAGE_SIZE)]
    assert {p.getcolors()[0][1] for p in pictures} == {(127, 127, 127)}
    real = answer_questions(model, SAMPLES[:1], 4, 8)
    blind = answer_questions(model, SAMPLES[:1], 4, 8, blank_images=True)
    assert [q.answer for q in real] != [q.answer for q in blind]
    assert blind[0].images is SAMPLES[0]["images"]


def test_images_inside_messages_are_shown(model):
    inside = {"id": "a", "images": [], "messages": turn("", "2")}
    inside["messages"][0]["content"] = [
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": "How many are there?"},
    ]
    (found,) = answer_questions(model, [inside], 4, 8)
    beside = answer_questions(model, SAMPLES[:1], 4, 8)[1]
    assert (found.question, found.answer) == (beside.question, beside.answer)
    assert [id(image) for image in found.images] == [
        id(inside["messages"][0]["content"][0]["image"])
    ]
