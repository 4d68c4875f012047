"""`generate`: batches, samplers, stops, streams, questions, statistics and refusals."""

import gc
import io
import json

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from tiny_chat import (
    CHARACTERS,
    CHAT_IMAGE_ID,
    assistant,
    count_programs,
    letters,
    log_softmax,
    picture,
    png,
    user,
)
from tiny_models import (
    IMAGE_ID,
    TOKENS_PER_IMAGE,
    fill,
    left_padded,
    logits,
    mixed_batch,
    random_ids,
    row_alone,
    text_batch,
    tiny_config,
    tiny_nanovlm,
)

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.generation import BeamSearch, Sampler, VisionCache
from dl_techniques.generation.buckets import bucket
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer

LONG = 64
NEW = 12
SAMPLER = Sampler(temperature=1.3, top_k=20, top_p=0.95)
PENALISED = Sampler(temperature=1.3, min_p=0.02, repetition_penalty=1.5)


def prompts_of(fusion):
    return mixed_batch() if fusion == "placeholder" else text_batch()


# Batches.


@pytest.mark.parametrize(
    ("fusion", "sampler"),
    [("placeholder", "greedy"), ("placeholder", SAMPLER), ("prefix", "greedy")],
    ids=["greedy", "sampled", "prefix"],
)
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(models, fusion, sampler):
    model, prompts = models[fusion], prompts_of(fusion)
    together = model.generate(prompts, LONG, sampler, seed=5)
    assert together.shape == (3, LONG) and together.dtype == np.int32
    assert all(len(np.unique(row)) > 3 for row in together)
    moved = model.generate(left_padded(prompts), LONG, sampler, seed=5)
    np.testing.assert_array_equal(moved, together)
    for row in range(3):
        alone = model.generate(row_alone(prompts, row), LONG, sampler, seed=5 + row)
        np.testing.assert_array_equal(alone[0], together[row])


def test_rows_with_the_same_seed_are_the_same_wherever_they_stand(models):
    model, ids = models["placeholder"], np.repeat(random_ids(1, 9), 3, axis=0)
    same = model.generate(ids, NEW, PENALISED, seed=[4, 4, 4])
    np.testing.assert_array_equal(same, same[[0, 0, 0]])
    other = model.generate(ids, NEW, PENALISED, seed=np.array([9, 4, 5]))
    np.testing.assert_array_equal(other[1], same[0])
    np.testing.assert_array_equal(model.generate(ids, NEW, PENALISED, seed=4)[0], same[0])


def test_seeds_decide(models):
    model, prompts = models["placeholder"], mixed_batch()
    first = model.generate(prompts, NEW, "sample", seed=1)
    np.testing.assert_array_equal(model.generate(prompts, NEW, "sample", seed=1), first)
    others = [model.generate(prompts, NEW, "sample", seed=seed) for seed in (11, 21)]
    assert all((other != first).any(axis=1).all() for other in others)
    # Greedy draws nothing.
    greedy = [model.generate(prompts, NEW, seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*greedy)


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_vision_embeds_take_the_place_of_images(models, fusion, monkeypatch):
    model, prompts = models[fusion], prompts_of(fusion)
    expected = model.generate(prompts, NEW)
    counts = count_programs(monkeypatch, model)
    embeds = model.encode_vision(ops.convert_to_tensor(prompts["images"]))
    without = {name: value for name, value in prompts.items() if name != "images"}
    np.testing.assert_array_equal(model.generate(without, NEW, vision_embeds=embeds), expected)
    inside = without | {"vision_embeds": ops.convert_to_numpy(embeds)}
    np.testing.assert_array_equal(model.generate(inside, NEW), expected)
    assert counts["encode"] == 0 and counts["prefill"] == 2


def test_lists_and_tensors_are_arrays_too(models):
    model, ids = models["placeholder"], random_ids(2, 9)
    expected = model.generate(ids, NEW)
    for same in (ids.tolist(), ops.convert_to_tensor(ids), {"text_tokens": ids.tolist()}):
        np.testing.assert_array_equal(model.generate(same, NEW), expected)


# Log-probabilities and samplers.


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED], ids=str)
def test_log_probabilities_are_those_of_uncached_logits(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    ids, logprobs = model.generate(prompts, NEW, sampler, return_logprobs=True)
    for row in range(3):
        alone = row_alone(prompts, row)
        width = alone["text_tokens"].shape[1]
        whole = np.concatenate([alone["text_tokens"], ids[row : row + 1]], axis=1)
        scores = log_softmax(logits(model, alone | {"text_tokens": whole}))[0, width - 1 : -1]
        expected = scores[np.arange(NEW), ids[row]]
        np.testing.assert_allclose(logprobs[row], expected, atol=1e-5)


def test_greedy_ids_under_a_repetition_penalty_are_those_of_uncached_logits(models):
    model, prompt = models["placeholder"], random_ids(1, 9)
    got = model.generate(prompt, NEW, Sampler(temperature=0, repetition_penalty=4.0))[0]
    row = prompt[0].tolist()
    for token in got:
        scores = logits(model, {"text_tokens": np.array([row + [0] * (9 + NEW - len(row))])})
        scores = scores[0, len(row) - 1].astype("float64")
        held = np.unique(row)
        scores[held] = np.where(scores[held] > 0, scores[held] / 4, scores[held] * 4)
        scores[IMAGE_ID] = -np.inf
        assert token == scores.argmax()
        row.append(int(token))
    assert (got != model.generate(prompt, NEW)[0]).any()


def test_samplers_and_their_numbers_share_one_program(models):
    model, prompts = models["placeholder"], mixed_batch()
    model.generate(prompts, NEW, SAMPLER)
    before = model.generation_stats()["compilations"]
    for sampler in (Sampler(), Sampler(0.5 + 0.5), Sampler(top_k=1), Sampler(min_p=0.3, top_k=3)):
        model.generate(prompts, NEW, sampler, seed=3)
    assert model.generation_stats()["compilations"] == before
    likeliest = model.generate(prompts, NEW, Sampler(top_k=1))
    np.testing.assert_array_equal(likeliest, model.generate(prompts, NEW))


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED, BeamSearch(2)], ids=str)
def test_the_placeholder_is_never_chosen(placeholder_lover, sampler):
    model, prompts = placeholder_lover
    assert logits(model, prompts)[0, -1].argmax() == IMAGE_ID
    assert IMAGE_ID not in model.generate(prompts, NEW, sampler)


def test_no_processor_can_choose_the_placeholder(placeholder_lover):
    model, prompts = placeholder_lover

    def favour(logits, ids, i):
        return ops.where(ops.arange(32) == IMAGE_ID, 1e9, logits)

    for sampler in ("greedy", SAMPLER):
        ids = model.generate(prompts, NEW, sampler, logits_processors=[favour])
        assert IMAGE_ID not in ids


@pytest.fixture(scope="module")
def placeholder_lover():
    """A model whose logit of the placeholder is by far the largest, and a prompt."""
    model, prompts = tiny_nanovlm(), mixed_batch()
    table = model.language_decoder.token_embedding.embeddings
    rows = ops.convert_to_numpy(table.value).copy()
    best = logits(model, prompts)[0, -1].argmax()
    rows[IMAGE_ID] = 50 * rows[best]
    table.assign(rows)
    return model, prompts


def only_even(logits, ids, i):
    return ops.where(ops.arange(32) % 2 == 0, logits, -1e9)


def count_up(logits, ids, i):
    """After the first token, one more than the token before."""
    before = ops.take(ids, ops.maximum(i - 1, 0), axis=1)
    wanted = ops.equal(ops.arange(32), ops.expand_dims((before + 1) % 30, 1))
    return ops.where(ops.logical_or(ops.equal(i, 0), wanted), logits, -1e9)


def test_logits_processors_are_applied_in_order(models):
    model, prompts = models["placeholder"], mixed_batch()
    for sampler in ("greedy", SAMPLER):
        even = model.generate(prompts, NEW, sampler, logits_processors=[only_even])
        assert (even % 2 == 0).all() and len(np.unique(even)) > 3
    ids = model.generate(prompts, NEW, SAMPLER, logits_processors=[count_up])
    np.testing.assert_array_equal(ids, (ids[:, :1] + np.arange(NEW)) % 30)

    def one(logits, ids, i):
        return ops.where(ops.arange(32) == 1, 1e3, logits)

    def two(logits, ids, i):
        return ops.where(ops.arange(32) == 2, ops.max(logits, axis=1, keepdims=True) + 1, logits)

    assert (model.generate(prompts, 2, logits_processors=[one, two]) == 2).all()
    assert (model.generate(prompts, 2, logits_processors=[two, one]) == 1).all()


# Stops.


def ended_by(ids, stop_ids, pad):
    """Return ids with padding behind each row's first stop id."""
    ends = np.isin(ids, stop_ids)
    after = np.cumsum(ends, axis=1) - ends > 0
    return np.where(after, pad, ids), after


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER], ids=["greedy", "sampled"])
def test_everything_behind_a_stop_id_is_padding(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    free, free_logprobs = model.generate(prompts, LONG, sampler, return_logprobs=True)
    stop_ids = [int(free[0, 3]), int(free[1, 20])]
    expected, after = ended_by(free, stop_ids, 2)
    assert after[0].any()
    options = {"sampler": sampler, "stop_ids": stop_ids, "pad_token_id": 2}
    ids, logprobs = model.generate(prompts, LONG, **options, return_logprobs=True)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(logprobs, np.where(after, 0, free_logprobs), atol=1e-5)
    assert (logprobs[after] == 0).all()
    columns = list(model.generate(prompts, LONG, **options, stream=True))
    np.testing.assert_array_equal(np.stack(columns, axis=1), ids[:, : len(columns)])


def test_decoding_ends_when_all_rows_have_ended(models):
    model, prompts = models["placeholder"], mixed_batch()
    first = model.generate(prompts, 3)
    before = model.generation_stats()["new_tokens"]
    ids = model.generate(prompts, 60, stop_ids=first[:, 2].tolist())
    lengths = (~ended_by(ids, first[:, 2], 0)[1]).sum(axis=1)
    assert lengths.max() <= 3
    # The first token is the prefill's.
    assert model.generation_stats()["new_tokens"] - before <= 3 * (lengths.max() - 1)
    columns = list(model.generate(prompts, 60, stop_ids=first[:, 2].tolist(), stream=True))
    assert len(columns) == lengths.max()


def spelled(text):
    """Return a logits processor that makes every row say a text, then end."""
    ids = np.array([ord(c) for c in text] + [2], "int32")

    def processor(logits, chosen, i):
        token = ops.take(ids, ops.minimum(i, len(ids) - 1))
        return ops.where(ops.arange(CHARACTERS + 1) == token, 1e3, logits)

    return processor


SAYS = spelled(" it is. question: what? ")


def test_stop_strings_end_a_row_and_are_not_part_of_its_text(chat):
    options = {"max_new_tokens": 30, "logits_processors": [SAYS]}
    assert chat.generate("hm?", **options) == "it is. question: what?"
    assert chat.generate("hm?", stop_strings=["question:"], **options) == "it is."
    assert chat.generate("hm?", stop_strings=["what", "s. q"], **options) == "it i"
    assert chat.generate("hm?", stop_strings=["no such"], **options) == "it is. question: what?"
    stream = list(chat.generate("hm?", stop_strings=["question:"], stream=True, **options))
    assert stream == ["i", "t", " i", "s", "."]
    # Ids end with the token that completes the stop string.
    ids = np.array([chat.processor.encode_prompt([user("hm?")]).token_ids])
    options |= {"stop_strings": ["quest"], "return_logprobs": True}
    row, logprobs = chat.generate(ids, **options)
    said = " it is. quest"
    assert row[0].tolist() == [*map(ord, said), *[0] * (30 - len(said))]
    assert (logprobs[0, : len(said)] != 0).all() and (logprobs[0, len(said) :] == 0).all()
    del options["return_logprobs"]
    columns = list(chat.generate(ids, stream=True, **options))
    assert [int(column[0]) for column in columns] == [*map(ord, said)]


def test_rows_stop_by_text_on_their_own(chat):
    questions = ["what is it?", "how many are there?", "why?"]
    options = {"max_new_tokens": 20, "logits_processors": [letters]}
    free = chat.generate(questions, **options)
    stop = free[0][5:7]
    stopped = chat.generate(questions, stop_strings=[stop], **options)
    assert stopped == [text.split(stop)[0] for text in free]
    assert stopped[0] != free[0] and stopped[1:] != ["", ""]
    streamed = ["", "", ""]
    for pieces in chat.generate(questions, stop_strings=[stop], stream=True, **options):
        streamed = [text + piece for text, piece in zip(streamed, pieces, strict=True)]
    assert streamed == stopped


# Streams.


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED], ids=str)
def test_streamed_ids_are_the_ids(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    expected = model.generate(prompts, NEW, sampler, seed=3)
    columns = list(model.generate(prompts, NEW, sampler, seed=3, stream=True))
    assert all(column.shape == (3,) and column.dtype == np.int32 for column in columns)
    np.testing.assert_array_equal(np.stack(columns, axis=1), expected)


@pytest.mark.parametrize("question", [[user("what?", picture(0))], "how?"])
def test_streamed_text_is_the_text(chat, question):
    for options in ({"logits_processors": [letters]}, {"sampler": SAMPLER, "seed": 8}):
        pieces = list(chat.generate(question, NEW, stream=True, **options))
        assert all(pieces) and "".join(pieces) == chat.generate(question, NEW, **options)


def test_the_first_piece_comes_before_the_rest_is_computed(chat, models, monkeypatch):
    counts = count_programs(monkeypatch, chat)
    stream = chat.generate("what?", NEW, stream=True, logits_processors=[letters])
    assert not counts
    assert next(stream)
    # Token 0 is a blank, which is held back: one step more.
    assert counts["prefill"] == 1 and counts["decode"] == 1
    assert next(stream) and counts["decode"] == 2
    stream.close()
    assert list(stream) == [] and counts["decode"] == 2
    counts = count_programs(monkeypatch, models["placeholder"])
    columns = models["placeholder"].generate(mixed_batch(), NEW, stream=True)
    next(columns)
    assert counts["prefill"] == 1 and counts["decode"] == 0
    next(columns)
    assert counts["decode"] == 1


def test_no_broken_characters_with_byte_level_tokens(byte_chat):
    model, text = byte_chat
    assert model.generate("hm?", 40) == text
    pieces = list(model.generate("hm?", 40, stream=True))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len(pieces) >= 6 and any("😀" in piece for piece in pieces)


@pytest.fixture
def byte_chat(tmp_path, monkeypatch):
    """A model with a byte-level tokenizer, and the text that it always says."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    spelling = {b: chr(b) for b in own} | {b: chr(256 + n) for n, b in enumerate(others)}
    vocab = {spelling[b]: b for b in range(256)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = HuggingFaceTokenizer.from_vocab_and_merges(
        tmp_path / "vocab.json",
        tmp_path / "merges.txt",
        special_tokens=["<|end|>", "<|image|>"],
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    model = tiny_nanovlm(vocab_size=258, image_token_id=257)
    model.processor = VQADataProcessor(
        16, tokenizer=tokenizer, image_token_id=257, tokens_per_image=TOKENS_PER_IMAGE
    )
    text = "a 😀é漢字 b"
    said = np.array([*f" {text}".encode(), 256], "int32")

    def says(logits, ids, i):
        token = ops.take(said, ops.minimum(i, len(said) - 1))
        return ops.where(ops.arange(258) == token, 1e3, logits)

    generate = model.generate
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, *args, **options: generate(*args, logits_processors=[says], **options),
    )
    return model, text


# Questions.


def test_strings_give_strings(chat):
    one = chat.generate("what?", NEW)
    assert isinstance(one, str)
    assert chat.generate(["what?"], NEW) == [one]
    assert chat.generate([user("what?")], NEW) == one
    assert chat.generate([[user("what?")], "what?"], NEW) == [one, one]
    assert chat.generate(("what?", "what?"), NEW) == [one, one]
    ids = chat.processor.encode_prompt([user("what?")]).token_ids
    (row,) = chat.generate([ids], NEW)
    stop = np.flatnonzero(np.isin(row, chat.processor.stop_ids))
    assert chat.processor.decode(row[: stop[0] if len(stop) else NEW]).strip() == one
    text, logprobs = chat.generate("what?", NEW, return_logprobs=True)
    assert text == one and logprobs.shape == (1, NEW)
    system = [{"role": "system", "content": "be kind"}, user("a?"), assistant("b"), user("c?")]
    assert isinstance(chat.generate(system, NEW), str)


def test_an_image_may_come_from_anywhere(chat, tmp_path):
    array = picture(0, size=20)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    read = io.BytesIO(png(array))
    read.read()
    sources = [path, str(path), png(array), Image.fromarray(array), array, read]
    conversations = [[user("what?", source)] for source in sources]
    pixels = chat.processor.preprocess_image(array)
    ids = chat.processor.encode_prompt(conversations[0]).token_ids
    arrays = {"text_tokens": np.array([ids]), "images": pixels[None]}
    options = {"logits_processors": [letters], "return_logprobs": True}
    _, expected = chat.generate(arrays, NEW, **options)
    texts, logprobs = chat.generate(conversations, NEW, **options)
    assert len(set(texts)) == 1
    np.testing.assert_allclose(logprobs, np.repeat(expected, 6, axis=0), atol=1e-5)
    content = [{"type": "image", "image": path}, {"type": "text", "text": "what?"}]
    assert chat.generate([{"role": "user", "content": content}], NEW, **options)[0] == texts[0]
    # It matters which image it is.
    _, other = chat.generate([user("what?", picture(9))], NEW, **options)
    assert np.abs(other - expected).max() > 1e-3


def test_conversations_of_any_images_are_answered_as_if_alone(chat):
    conversations = [
        [user("which?", picture(0), picture(1))],
        "none?",
        [user("one?", picture(2)), assistant("yes"), user("and now?")],
    ]
    options = {"logits_processors": [letters], "return_logprobs": True}
    together, logprobs = chat.generate(conversations, NEW, **options)
    for row, conversation in enumerate(conversations):
        alone, values = chat.generate(conversation, NEW, **options)
        assert alone == together[row]
        np.testing.assert_allclose(values[0], logprobs[row], atol=1e-5)


def test_conversations_of_any_images_before_the_text(models, chat):
    model = tiny_nanovlm(
        "prefix",
        vocab_size=CHARACTERS + 1,
        language_config=models["prefix"].language_config | {"max_positions": 60},
    )
    model.processor = VQADataProcessor(16, tokenizer=chat.processor.tokenizer)
    # Rows share the slots of the most images: 42 tokens and 2 * 4 slots, though of other rows.
    long, images = "x" * (42 - len("<question:  answer:")), [picture(0), picture(1)]
    conversations = [long, [user("hm?", *images)]]
    together, logprobs = model.generate(conversations, 10, return_logprobs=True)
    for row, conversation in enumerate(conversations):
        alone, values = model.generate(conversation, 10, return_logprobs=True)
        assert alone == together[row]
        np.testing.assert_allclose(values[0], logprobs[row], atol=1e-5)
    with pytest.raises(ValueError, match=r"50 prompt positions \+ max_new_tokens=11 .*=60"):
        model.generate(conversations, 11)


def test_stops_of_the_template_are_the_default(chat):
    assert chat.processor.stop_ids == [2]
    said = {"logits_processors": [spelled(" ab")], "max_new_tokens": NEW}
    assert chat.generate("hm?", **said) == "ab"
    ids = np.array([chat.processor.encode_prompt([user("hm?")]).token_ids])
    expected = [ord(" "), ord("a"), ord("b"), 2]
    assert chat.generate(ids, **said)[0].tolist() == expected + [0] * (NEW - 4)
    assert chat.generate(ids, stop_ids=[], **said)[0].tolist() == expected + [2] * (NEW - 4)


def test_stops_of_the_model_join_those_of_the_template(chat, monkeypatch):
    said = {"logits_processors": [spelled(" ab")], "max_new_tokens": NEW}
    monkeypatch.setattr(chat, "stop_ids", (ord("b"),))
    assert chat.generate("hm?", **said) == "a"
    monkeypatch.setattr(chat, "stop_ids", (ord("z"),))
    assert chat.generate("hm?", **said) == "ab"


# Refusals.


def test_arguments_are_refused_before_anything_is_computed(models, chat, monkeypatch):
    model, ids = models["placeholder"], random_ids(2, 16)
    counts = [count_programs(monkeypatch, used) for used in (*models.values(), chat)]
    image = [user("what?", picture(0))]
    for used, inputs, options, message in (
        (model, ids, {"max_new_tokens": 113}, r"16 prompt positions \+ max_new_tokens=113 .*=128"),
        (models["prefix"], text_batch(), {"max_new_tokens": 105}, "24 prompt positions .*=105"),
        (chat, image, {"max_new_tokens": 230}, r"28 prompt positions \+ max_new_tokens=230 .*256"),
        (chat, image, {"max_new_tokens": 0}, "max_new_tokens=0 must be an int of at least 1"),
        (chat, image, {"max_new_tokens": 2.5}, "max_new_tokens=2.5 must be an int"),
        (chat, image, {"max_new_tokens": "5"}, "max_new_tokens='5' must be an int"),
        (chat, image, {"sampler": "best"}, r"sampler='best' must be .* \['greedy', 'sample'\]"),
        (chat, image, {"sampler": None}, "sampler=None must be"),
        (chat, image, {"sampler": ["greedy"]}, r"sampler=\['greedy'\] must be"),
        (chat, image, {"seed": -1}, "seed=-1 must be an int >= 0"),
        (chat, image, {"seed": None}, "seed=None must be an int"),
        (chat, image, {"seed": 0.5}, "seed=0.5 must be an int"),
        (chat, image, {"seed": [1, 2]}, "one for each of 1 rows"),
        (model, ids, {"seed": [1, -2]}, "one for each of 2 rows"),
        (chat, image, {"stop_ids": [129]}, r"stop_ids \[129\] are outside \[0, vocab_size=129\)"),
        (chat, image, {"stop_ids": [-1]}, r"stop_ids \[-1\] are outside"),
        (chat, image, {"stop_ids": 2}, "stop_ids=2 must be a list of ids"),
        (chat, image, {"stop_ids": [2.5]}, r"stop_ids=\[2.5\] must be a list of ids"),
        (chat, image, {"stop_ids": "ab"}, "stop_ids='ab' must be a list of ids"),
        (chat, image, {"stop_strings": "end"}, "stop_strings='end' must be a list of texts"),
        (chat, image, {"stop_strings": ["a", ""]}, "none empty"),
        (chat, image, {"stop_strings": [5]}, r"stop_strings=\[5\] must be a list of texts"),
        (chat, image, {"pad_token_id": CHAT_IMAGE_ID}, "pad_token_id=128 .* image placeholder 128"),
        (chat, image, {"pad_token_id": -1}, r"pad_token_id=-1 must lie in \[0, vocab_size=129\)"),
        (chat, image, {"logits_processors": letters}, "must be a list of functions"),
        (chat, image, {"logits_processors": ["greedy"]}, "must be a list of functions"),
        (chat, image, {"stream": True, "return_logprobs": True}, "return_logprobs needs the whole"),
        (chat, image, {"vision_embeds": np.zeros((1, 1, 4, 24))}, "vision_embeds go with arrays"),
        (model, "what?", {}, "Questions need a tokenizer: set model.processor"),
        (model, ids, {"stop_strings": ["x"]}, "Stop strings need a tokenizer"),
        (model, ids, {"vision_embeds": np.zeros((2, 4, 24))}, r"vision_embeds must be float\[B, I"),
        (model, {"text_tokens": ids, "turn_ids": ids}, {}, r"cannot be packed: .*\['turn_ids'\]"),
        (model, {"text_tokens": ids, "pixels": 0}, {}, r"unknown keys \['pixels'\]"),
        (model, ids + 40, {}, "is out of range"),
        (model, ids[0], {}, r"text_tokens must be integers \[B, S\]"),
        (model, [[]], {}, r"text_tokens must be integers \[B, S\]"),
        (model, ids[:0], {}, r"text_tokens \(0, 16\) hold no prompt"),
        (model, ids[:, :0], {}, r"text_tokens \(2, 0\) hold no prompt"),
        (model, ids / 1.0, {}, r"text_tokens must be integers \[B, S\], got float64"),
        (chat, [], {}, r"takes a question, a conversation .* got \[\]"),
        (chat, None, {}, "takes a question, .* got None"),
        (chat, 5, {}, "takes a question, .* got 5"),
        (chat, {}, {}, "takes a question, .* got {}"),
        (chat, user("what?"), {}, "takes a question, .* got {'role'"),
        (chat, ["what?", 5], {}, "Expected a question or a conversation .* got 5"),
        (chat, [["what?"]], {}, "text_tokens must be integers"),
        (chat, [{"role": "robot", "content": "x"}], {}, "robot"),
        (chat, [user("x"), assistant("y")], {}, "the last message is the assistant's"),
        (chat, [user("what?", "/no/such/file.png")], {}, "cannot be read: .*no/such/file.png"),
        (chat, [user("what?", 5)], {}, "is no image source"),
        (chat, [user("what?", None)], {}, "an image that is None"),
    ):
        with pytest.raises(ValueError, match=message):
            used.generate(inputs, **{"max_new_tokens": 4} | options)
    assert not any(counts)


def test_a_prompt_may_fill_all_positions_but_the_new_ones(models):
    model = models["placeholder"]
    ids = np.resize(random_ids(1, 16), (1, 125))
    new = model.generate(ids, 3)
    whole = np.concatenate([ids, new], axis=1)
    scores = logits(model, {"text_tokens": whole})[0, 124:-1, :IMAGE_ID]
    np.testing.assert_array_equal(scores.argmax(axis=-1), new[0])


# Statistics.


def test_statistics_count_what_was_done(chat):
    before = chat.generation_stats()
    chat.generate(["what?", "how?"], NEW, stop_ids=[])
    after = chat.generation_stats()
    grown = {name: after[name] - before[name] for name in after}
    prompts = len("<question: what? answer:") + len("<question: how? answer:")
    assert grown["requests"] == 1 and grown["prompt_tokens"] == prompts
    assert grown["new_tokens"] == 2 * (NEW - 1)
    assert grown["prefill_seconds"] > 0 and grown["decode_seconds"] > 0
    assert after["tokens_per_second"] == after["new_tokens"] / after["decode_seconds"]


def test_nothing_is_compiled_twice_within_a_bucket(models):
    model = models["placeholder"]
    model.generate(random_ids(4, 24), 16)
    before = model.generation_stats()["compilations"]
    for rows, length, new in ((4, 17, 16), (4, 20, 9), (4, 24, 1), (4, 18, 13)):
        assert model.generate(random_ids(rows, length), new).shape == (rows, new)
    assert model.generation_stats()["compilations"] == before


def request(generator):
    """Return a random request: a batch of arrays, a sampler and options."""
    rows, length = int(generator.integers(1, 3)), int(generator.integers(9, 25))
    images = int(generator.integers(0, 3))
    ids = generator.integers(3, IMAGE_ID, (rows, length)).astype("int32")
    batch = {"text_tokens": ids}
    if images:
        counts = generator.integers(0, images + 1, rows)
        for row, count in enumerate(counts):
            ids[row, : TOKENS_PER_IMAGE * count] = IMAGE_ID
        batch["images"] = generator.uniform(-1, 1, (rows, images, 16, 16, 3)).astype("float32")
        batch["num_images"] = counts.astype("int32")
    samplers = ["greedy", SAMPLER, PENALISED, Sampler(top_k=int(generator.integers(1, 30)))]
    options = {
        "sampler": samplers[generator.integers(4)],
        "max_new_tokens": int(generator.integers(1, 7)),
        "seed": int(generator.integers(1000)),
        "stop_ids": generator.integers(0, 30, int(generator.integers(0, 6))).tolist(),
        "stream": bool(generator.integers(2)),
    }
    return batch, options


def buckets_of(batch, options):
    """Return the programs that a request needs, by the buckets of its shapes."""
    rows, length = batch["text_tokens"].shape
    images = batch["images"].shape[1] if "images" in batch else 0
    sampler = options["sampler"]
    kind = "greedy" if sampler == "greedy" else sampler.penalises
    shape = bucket(rows), bucket(length, 16), bucket(bucket(length, 16) + 16, 16)
    stops = bucket(max(1, len(options["stop_ids"])), 4)
    needed = {("prefill", *shape, bucket(images)), ("choose", shape[0], kind, stops)}
    if options["max_new_tokens"] > 1:
        needed.add(("decode", shape[0], shape[2], kind, stops))
    return needed | ({("encode", bucket(rows * images))} if images else set())


def test_random_requests_need_no_more_programs_than_buckets_and_no_more_memory():
    small = tiny_config()
    small["vision_config"]["depth"] = small["language_config"]["num_layers"] = 1
    model, generator = fill(NanoVLM(**small)), np.random.default_rng(0)
    # Few distinct shapes in all, as compiling takes this test's time.
    pool = [request(generator) for _ in range(6)]
    needed, sizes = set(), []
    for number in range(200):
        batch, options = pool[generator.integers(len(pool))]
        rows = batch["text_tokens"].shape[0]
        shorter = int(generator.integers(0, 3))
        mask = np.ones(batch["text_tokens"].shape, bool)
        mask[:, mask.shape[1] - shorter :] = False
        options = options | {"seed": generator.integers(0, 99, rows)}
        if options["max_new_tokens"] > 2:
            options["max_new_tokens"] -= int(generator.integers(0, 2))
        if (~mask & (batch["text_tokens"] == IMAGE_ID)).any():
            shorter, mask[:] = 0, True
        batch = batch | {"attention_mask": mask}
        real = {**batch, "text_tokens": batch["text_tokens"][:, : mask.shape[1] - shorter]}
        needed |= buckets_of(real, options)
        result = model.generate(batch, **options)
        if options["stream"]:
            list(result)
        if number in (100, 199):
            sizes.append(live_tensors())
    assert model.generation_stats()["compilations"] <= len(needed)
    assert model.generation_stats()["requests"] == 200
    assert sizes[1] <= sizes[0] + 8


def live_tensors():
    """Return how many arrays of the backend exist."""
    gc.collect()
    if keras.backend.backend() == "jax":
        import jax

        return len(jax.live_arrays())
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.framework.ops import EagerTensor as Tensor
    else:
        from torch import Tensor
    # `isinstance` would wake up what the libraries load lazily.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_conversation_about_images_leaves_only_its_cache(chat, monkeypatch):
    monkeypatch.setattr(chat, "vision_cache", VisionCache(2 * 4 * TOKENS_PER_IMAGE * 24))
    sizes = []
    for k in range(5):
        chat.generate([user("what?", picture(k))], NEW, logits_processors=[letters])
        sizes.append(live_tensors())
    assert chat.vision_cache.stats()["entries"] == 2
    assert sizes[-1] <= sizes[2]
