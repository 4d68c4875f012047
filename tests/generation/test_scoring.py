"""`score` gives what one uncached call gives."""

import numpy as np
import pytest
from tiny_chat import chat_model, count_programs, log_softmax, picture, user
from tiny_models import left_padded, logits, mixed_batch, row_alone, text_batch

ANSWERS = [[5, 9, 30], [7], [11, 12, 13, 14, 3]]


def reference(model, prompts, answers):
    """The answers' log-probabilities from one call on all prompts with their answers."""
    ends = prompts["attention_mask"].sum(axis=1)
    width = prompts["text_tokens"].shape[1] + max(map(len, answers))
    ids = np.zeros((len(answers), width), "int32")
    for row, answer in enumerate(answers):
        prompt = prompts["text_tokens"][row, : ends[row]]
        ids[row, : ends[row] + len(answer)] = [*prompt, *answer]
    lengths = ends + [len(answer) for answer in answers]
    mask = np.arange(width) < lengths[:, None]
    scores = logits(model, {**prompts, "text_tokens": ids, "attention_mask": mask})[:, -width:]
    scores = log_softmax(scores)
    return [
        [scores[row, ends[row] + i - 1, token] for i, token in enumerate(answer)]
        for row, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_scores_are_those_of_one_uncached_call(models, fusion):
    model = models[fusion]
    prompts = mixed_batch() if fusion == "placeholder" else text_batch()
    expected = reference(model, prompts, ANSWERS)
    for batch in (prompts, left_padded(prompts)):
        scores = model.score(batch, ANSWERS)
        for score, values in zip(scores, expected, strict=True):
            assert score.tokens.dtype == np.float32
            np.testing.assert_allclose(score.tokens, values, atol=1e-5)
            np.testing.assert_allclose(score.total, np.sum(values), atol=3e-5)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_does_not_depend_on_its_neighbours(models, row):
    model, prompts = models["placeholder"], mixed_batch()
    together = model.score(prompts, ANSWERS)[row]
    (alone,) = model.score(row_alone(prompts, row), [np.array(ANSWERS[row])])
    np.testing.assert_allclose(alone.tokens, together.tokens, atol=1e-5)


def test_greedy_answers_have_the_scores_that_generation_gave(models):
    model, prompts = models["placeholder"], mixed_batch()
    ids, logprobs = model.generate(prompts, 5, return_logprobs=True)
    scores = model.score(prompts, ids.tolist())
    np.testing.assert_allclose([score.tokens for score in scores], logprobs, atol=1e-5)
    assert all(score.greedy for score in scores)
    other = ids.copy()
    other[:, -1] = (other[:, -1] + 1) % 30
    assert not any(score.greedy for score in model.score(prompts, other.tolist()))


def test_texts_include_the_end_of_the_answer(chat):
    questions = [[user("what is it?", picture(0))], [user("how many are there?")]]
    texts = ["dog", "two or three"]
    scores = chat.score(questions, texts)
    prompts = [chat.processor.encode_prompt(question) for question in questions]
    for score, text, prompt, question in zip(scores, texts, prompts, questions, strict=True):
        answer = [*(ord(c) for c in " " + text), chat.processor.eos_token_id]
        batch = {
            "text_tokens": np.array([prompt.token_ids]),
            "attention_mask": np.ones((1, len(prompt.token_ids)), bool),
        }
        if prompt.images:
            pixels = [chat.processor.preprocess_image(image) for image in prompt.images]
            batch["images"] = np.stack(pixels)[None]
        (expected,) = reference(chat, batch, [answer])
        np.testing.assert_allclose(score.tokens, expected, atol=1e-5)
        (alone,) = chat.score(question, [text])
        np.testing.assert_allclose(alone.tokens, score.tokens, atol=1e-5)


def test_prompt_and_answer_may_fill_all_positions(models):
    model = models["placeholder"]
    ids = np.resize(np.arange(3, 30), (1, 128)).astype("int32")
    prompt = {"text_tokens": ids[:, :120]}
    (score,) = model.score(prompt, [ids[0, 120:]])
    mask = np.ones((1, 120), bool)
    (expected,) = reference(model, prompt | {"attention_mask": mask}, [ids[0, 120:].tolist()])
    np.testing.assert_allclose(score.tokens, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"120 prompt positions \+ answer tokens=9 .*=128"):
        model.score(prompt, [[*ids[0, 120:], 5]])


def test_a_placeholder_of_id_zero_is_no_padding():
    model = chat_model()
    model = type(model)(**{**model.get_config(), "image_token_id": 0, "name": "zero"})
    ids = np.array([[5, 6, 7]], "int32")
    (score,) = model.score(ids, [[8, 9]])
    assert np.isfinite(score.tokens).all()


def test_bad_input_is_refused_before_anything_is_computed(models, chat, monkeypatch):
    model, prompts = models["placeholder"], mixed_batch()
    counts = [count_programs(monkeypatch, model), count_programs(monkeypatch, chat)]
    image = user("what?", picture(0))
    for used, inputs, answers, message in (
        (model, prompts, ANSWERS[:2], "an answer for each of 3 prompts"),
        (model, prompts, "abc", "an answer for each of 3 prompts"),
        (model, prompts, None, "an answer for each of 3 prompts"),
        (model, prompts, [[], [1], [2]], "not empty"),
        (model, prompts, [[1.5], [1], [2]], "a text or a list of ids"),
        (model, prompts, [[1], [32], [2]], r"in \[0, vocab_size=32\)"),
        (model, prompts, [[1], [-1], [2]], r"in \[0, vocab_size=32\)"),
        (model, prompts, ["a", "b", "c"], "Answers as text need model.processor"),
        (model, "what?", ["a"], "Questions need a tokenizer"),
        (model, prompts | {"segment_ids": prompts["text_tokens"]}, ANSWERS, "cannot be packed"),
        (chat, [image], [" "], "empty answer"),
        (chat, [image], ["x" * 300], "max_positions=256"),
        (chat, [], [], "generate takes a question"),
    ):
        with pytest.raises(ValueError, match=message):
            used.score(inputs, answers)
    assert not any(counts)
