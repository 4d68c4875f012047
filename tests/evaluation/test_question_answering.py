"""Asking a model and scoring its answers."""

import numpy as np
import pytest
from tiny_models import IMAGE_SIZE, random_images, tiny_nanovlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import (
    AnsweredQuestion,
    answer_questions,
    message_text,
    prompt_batch,
    share_correct,
)
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
def processor():
    tokenizer = CharacterTokenizer(128)
    image_id = tokenizer.add_special_tokens(["<|image|>"])[0]
    return VQADataProcessor(
        IMAGE_SIZE, 64, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=4
    )


@pytest.fixture(scope="module")
def model(processor):
    return tiny_nanovlm(vocab_size=processor.vocab_size, image_token_id=processor.image_token_id)


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


def test_questions_keep_their_own_ids_kinds_and_references(model, processor):
    found = answer_questions(model, processor, SAMPLES, 4, 3)
    assert [(q.id, q.kind, q.references) for q in found] == [
        ("a-0", "reason", ["So", "because"]),
        ("a-1", "count", ["2"]),
        ("b", "question", ["No"]),
        ("c", "question", ["Yes"]),
    ]
    assert [len(q.images) for q in found] == [1, 1, 2, 0]
    assert found[1].question == "How many are there?"


def test_a_ragged_batch_answers_as_single_questions(model, processor):
    batched = answer_questions(model, processor, SAMPLES, 4, 8)
    single = answer_questions(model, processor, SAMPLES, 1, 8)
    assert [q.answer for q in batched] == [q.answer for q in single]
    assert len({q.answer for q in batched}) > 1


def test_answers_end_at_the_stop_id(processor):
    class Parrot:
        def generate(self, inputs, max_new_tokens, sampler, stop_ids, **options):
            assert list(stop_ids) == [2] and max_new_tokens == 9
            row = [ord(c) for c in " yes"] + [2, ord("n"), 0]
            return np.array([row] * len(inputs["text_tokens"]))

    found = answer_questions(Parrot(), processor, SAMPLES, 3, 9)
    assert [q.answer for q in found] == ["yes"] * 4


def test_blank_images_take_the_pictures_away(model, processor):
    questions = [
        {"question": "Why?", "images": [picture(1)]},
        {"question": "Why though?", "images": []},
    ]
    seen = prompt_batch(processor, questions, batch_size=3)
    blank = prompt_batch(processor, questions, batch_size=3, blank_images=True)
    assert not blank.pop("images").any()
    assert seen["images"].shape == (3, 1, IMAGE_SIZE, IMAGE_SIZE, 3)
    np.testing.assert_allclose(seen.pop("images")[0, 0], picture(1) / 127.5 - 1, atol=1e-6)
    for name in blank:
        np.testing.assert_array_equal(seen[name], blank[name])
    # bos, 4 placeholders, "Question: Why? Answer:"; rounded up to 16s. Row 2 repeats row 1.
    assert seen["attention_mask"].sum(axis=1).tolist() == [27, 30, 30]
    assert seen["text_tokens"].shape == (3, 32)
    assert seen["num_images"].tolist() == [1, 0, 0]
    real = answer_questions(model, processor, SAMPLES[:1], 4, 8)
    blind = answer_questions(model, processor, SAMPLES[:1], 4, 8, blank_images=True)
    assert [q.answer for q in real] != [q.answer for q in blind]


def test_text_alone_needs_no_images_at_all(processor):
    inputs = prompt_batch(processor, [{"question": "Why?", "images": []}])
    assert set(inputs) == {"text_tokens", "attention_mask"}


def test_images_inside_messages_are_shown(model, processor):
    inside = {"id": "a", "images": [], "messages": turn("", "2")}
    inside["messages"][0]["content"] = [
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": "How many are there?"},
    ]
    (found,) = answer_questions(model, processor, [inside], 4, 8)
    beside = answer_questions(model, processor, SAMPLES[:1], 4, 8)[1]
    assert (found.question, found.answer) == (beside.question, beside.answer)
    assert [id(image) for image in found.images] == [
        id(inside["messages"][0]["content"][0]["image"])
    ]
