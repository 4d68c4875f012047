"""Wrong arguments, statistics, what is compiled and what stays in memory."""

import gc

import keras
import numpy as np
import pytest
from tiny_chat import (
    CHAT_IMAGE_ID,
    assistant,
    count_programs,
    letters,
    picture,
    user,
)
from tiny_models import (
    IMAGE_ID,
    TOKENS_PER_IMAGE,
    fill,
    logits,
    random_ids,
    text_batch,
    tiny_config,
)

from dl_techniques.generation import Sampler, VisionCache
from dl_techniques.generation.buckets import bucket
from dl_techniques.models.nano_vlm import NanoVLM

NEW = 12
SAMPLER = Sampler(temperature=1.3, top_k=20, top_p=0.95)
PENALISED = Sampler(temperature=1.3, min_p=0.02, repetition_penalty=1.5)


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
    needed.add(("empty_cache", shape[0], shape[2]))
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
