"""Whoever joins or leaves, every row gets the tokens that `generate` gives it alone."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from tiny_chat import CHAT_IMAGE_ID, picture, user
from tiny_families import family_batch, family_model

from dl_techniques.generation import Sampler
from dl_techniques.generation.arguments import find_sampler
from dl_techniques.generation.engine import Request
from dl_techniques.generation.prompts import prompt_batch, read_prompt
from dl_techniques.generation.rolling_batch import STEPS, RollingBatch, choose_first

STOPS = (0, 2, 7)
PENALISED = Sampler(temperature=0, repetition_penalty=2.0)
SAMPLED = Sampler(temperature=1.5, top_k=9, top_p=0.9)


def row_of(model, messages):
    return prompt_batch(model.generation_engine(), model, [read_prompt(model.processor, messages)])


def request(new, sampler="greedy", seed=0, stop_ids=STOPS):
    return Request(new, find_sampler(sampler), np.array([seed]), stop_ids)


def alone(model, batch, request):
    """Return the row's ids and log-probabilities by `generate`, up to its end."""
    ids, logprobs = model.generate(
        batch,
        request.max_new_tokens,
        request.sampler,
        stop_ids=request.stop_ids,
        seed=request.seeds,
        return_logprobs=True,
    )
    stops = np.flatnonzero(np.isin(ids[0], request.stop_ids))
    length = stops[0] + 1 if len(stops) else request.max_new_tokens
    return ids[0, :length].tolist(), logprobs[0, :length]


def assert_alone(model, seat, batch):
    ids, logprobs = alone(model, batch, seat.request)
    assert seat.ids == ids
    np.testing.assert_allclose(seat.logprobs, logprobs, atol=1e-5)


def join(model, rolling, batch, *wanted):
    """Read rows together and let them join; return the first one's seat, or all."""
    most = max(request.max_new_tokens for request in wanted)
    engine = model.generation_engine()
    seats = rolling.join(choose_first(engine, engine.read(batch, most, 0), wanted))
    return seats[0] if len(wanted) == 1 else seats


def advance(rolling):
    """Decode some steps, and wait for them."""
    rolling.advance()
    rolling.collect()


def run_schedule(model, rows, work, joins_at):
    """Let rows join at these steps and leave when they end; check each; return the most seats."""
    rolling = RollingBatch(model.generation_engine(), rows)
    waiting, seats, most = list(range(len(work))), {}, 0
    for step in range(1000):
        while waiting and joins_at[waiting[0]] <= step and rolling.room:
            number = waiting.pop(0)
            batch, wanted = work[number]
            seats[number] = join(model, rolling, batch, wanted)
        most = max(most, len(rolling.seats))
        advance(rolling)
        for seat in [seat for seat in rolling.seats if seat.ended]:
            rolling.leave([seat])
        if not waiting and not rolling.seats:
            break
    for number, (batch, _) in enumerate(work):
        assert_alone(model, seats[number], batch)
    return most


def test_every_row_gets_its_own_tokens_whoever_joins_and_leaves(chat):
    generator = np.random.default_rng(0)
    work = []
    # Few shapes in all, as compiling takes this test's time.
    for number in range(12):
        images = [picture(number)] if number % 3 == 0 else []
        sampler = ("greedy", SAMPLED, "greedy", PENALISED)[number % 4]
        stops = () if number % 2 else STOPS
        wanted = request(int(generator.integers(1, 17)), sampler, number, stops)
        work.append((row_of(chat, [user("abcdefgh"[: number % 7], *images)]), wanted))
    joins_at = np.sort(generator.integers(0, 9, len(work)))
    assert run_schedule(chat, 3, work, joins_at) == 3


def test_rows_that_are_read_together(chat):
    # Five, to which a sixth is added as padding.
    samplers = ("greedy", SAMPLED, PENALISED, "greedy", SAMPLED)
    wanted = [request(3 + 2 * n, sampler, n) for n, sampler in enumerate(samplers)]
    prompts = [[user("a" * 9 * n, *[picture(n)][: n % 2])] for n in range(5)]
    read = [read_prompt(chat.processor, messages) for messages in prompts]
    batch = prompt_batch(chat.generation_engine(), chat, read)
    for before in (0, 1, 2):
        rolling = RollingBatch(chat.generation_engine(), 7)
        wishes = [request(7), request(9, SAMPLED)][:before]
        others = [
            join(chat, rolling, row_of(chat, messages), wish)
            for messages, wish in zip(prompts, wishes, strict=False)
        ]
        advance(rolling)
        seats = join(chat, rolling, batch, *wanted)
        assert len(rolling.seats) == before + 5
        while not all(seat.ended for seat in rolling.seats):
            advance(rolling)
        rows = [*prompts[:before], *prompts]
        for seat, messages in zip([*others, *seats], rows, strict=True):
            assert_alone(chat, seat, row_of(chat, messages))


def test_the_likeliest_ids_of_each_step(chat):
    rolling = RollingBatch(chat.generation_engine(), 2)
    batches = [row_of(chat, [user("what?")]), row_of(chat, [user("and here?", picture(1))])]
    wanted = [request(6, stop_ids=()), request(9, SAMPLED, stop_ids=())]
    wanted = [replace(one, top_logprobs=n) for one, n in zip(wanted, (0, 3), strict=True)]
    plain, told = (join(chat, rolling, *both) for both in zip(batches, wanted, strict=True))
    while not told.ended:
        advance(rolling)
    assert plain.top_logprobs == [()] * 6
    ids = np.append(batches[1]["text_tokens"][0], told.ids[:-1])[None]
    inputs = {**batches[1], "text_tokens": ids, "attention_mask": np.ones_like(ids, bool)}
    logits = keras.ops.convert_to_numpy(chat(inputs))[0, -9:]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.argsort(-logprobs, axis=-1)[:, :3]
    assert [[token for token, _ in step] for step in told.top_logprobs] == expected.tolist()
    got = [[logprob for _, logprob in step] for step in told.top_logprobs]
    np.testing.assert_allclose(got, np.take_along_axis(logprobs, expected, 1), atol=1e-5)


def test_a_longer_row_makes_the_slots_grow(chat):
    short, long = (row_of(chat, [user("a" * n)]) for n in (2, 100))
    work = [(short, request(30, stop_ids=())), (long, request(40, stop_ids=()))]
    assert run_schedule(chat, 2, work, [0, 2]) == 2


def test_the_last_slots_of_the_cache(chat):
    # The prompts fill all positions but the new ones; the other row goes on behind their end.
    ends = [request(new, stop_ids=()) for new in (12, 9)]
    rows = [np.resize(np.arange(60, 90), (1, 256 - wanted.max_new_tokens)) for wanted in ends]
    work = [({"text_tokens": row.astype("int32")}, w) for row, w in zip(rows, ends, strict=True)]
    assert run_schedule(chat, 2, work, [0, 1]) == 2


@pytest.mark.parametrize("case", ["nvlm_x", "nvlm_h"])
def test_rows_with_other_numbers_of_images_in_the_context(case):
    model = family_model(case)
    inputs, _ = family_batch(case)
    rows = [{name: value[k : k + 1] for name, value in inputs.items()} for k in range(2)]
    text = {"text_tokens": np.arange(5, 17, dtype="int32")[None]}
    work = [(row, request(14, stop_ids=())) for row in (text, rows[0], text, rows[1])]
    assert run_schedule(model, 3, work, [0, 1, 2, 3]) == 3


def test_a_row_that_left_keeps_what_it_reads_by_cross_attention():
    model = family_model("nvlm_x")
    engine, rolling = model.generation_engine(), RollingBatch(model.generation_engine(), 2)
    inputs, _ = family_batch("nvlm_x")
    rows = [{name: value[k : k + 1] for name, value in inputs.items()} for k in range(2)]
    seats = [join(model, rolling, row, request(5, stop_ids=())) for row in rows]
    while not seats[1].ended:
        advance(rolling)
    (kept,) = rolling.leave(seats[1:], True)
    alone = engine.start(rows[1], request(5, stop_ids=())).take_cache()
    assert any(len(block) == 5 for block in alone)
    for block, expected in zip(kept, alone, strict=True):
        assert len(block) == len(expected)
        for got, wanted in zip(block[2:], expected[2:], strict=True):
            got, wanted = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (got, wanted))
            np.testing.assert_allclose(got[:, : wanted.shape[1]], wanted, atol=1e-5)
            assert not got[:, wanted.shape[1] :].any()


def test_prefix_fusion(models):
    inputs = {"text_tokens": np.arange(5, 17, dtype="int32")[None]}
    pictured = {**inputs, "images": np.ones((1, 1, 16, 16, 3), "float32")}
    work = [(batch, request(14, stop_ids=())) for batch in (inputs, pictured, inputs)]
    assert run_schedule(models["prefix"], 3, work, [0, 1, 2]) == 3


def test_rows_that_left_keep_their_caches_for_the_next_turn(chat):
    engine, rolling = chat.generation_engine(), RollingBatch(chat.generation_engine(), 6)
    texts = ("what?", "which one?", "w" * 50, "why", "who", "how")
    rows = [row_of(chat, [user(text)]) for text in texts]
    seats = [join(chat, rolling, row, request(9, stop_ids=())) for row in rows]
    while not all(seat.ended for seat in seats):
        advance(rolling)
    # Five leave together, in another order; the last one's row is not theirs.
    left = [seats[k] for k in (4, 2, 0, 1, 3)]
    caches = dict(zip(left, rolling.leave(left, True), strict=True))
    assert rolling.seats == [seats[5]]
    assert rolling.leave([seats[5]]) == [None]
    # A short conversation does not keep the room of a long one.
    lengths = {seat.start: cache[0][0].shape[1] for seat, cache in caches.items()}
    assert len(set(lengths.values())) > 1
    assert all(length >= start + 8 for start, length in lengths.items())
    for seat, row in zip(seats[:5], rows, strict=False):
        again = engine.start(row, request(9, stop_ids=()))
        again.advance(9)
        fed = again.start + 8
        for block, other in zip(caches[seat], again.take_cache(), strict=True):
            for got, expected in zip(block, other, strict=True):
                got, expected = map(keras.ops.convert_to_numpy, (got, expected))
                np.testing.assert_allclose(got[:, :fed], expected[:, :fed], atol=1e-5)


def test_what_a_row_left_with_is_its_own(chat):
    """Whoever takes its place writes nothing to it."""
    rolling = RollingBatch(chat.generation_engine(), 3)
    *rows, last = (row_of(chat, [user(text)]) for text in ("what?", "which one?", "why", "where"))
    first, *_ = [join(chat, rolling, row, request(12, stop_ids=())) for row in rows]
    advance(rolling)
    kept = [x for block in rolling.leave([first], True)[0] for x in block]
    before = [np.array(keras.ops.convert_to_numpy(x)) for x in kept]
    assert join(chat, rolling, last, request(12, stop_ids=())).row == 0
    advance(rolling)
    for x, expected in zip(kept, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), expected)
        if keras.backend.backend() == "torch":
            assert x.untyped_storage().nbytes() == expected.nbytes


def test_whoever_joins_needs_no_new_programs(chat):
    work = [(row_of(chat, [user("abc"[:n])]), request(12, stop_ids=())) for n in (1, 2, 3, 2)]
    run_schedule(chat, 3, work, [0, 0, 0, 0])
    run_schedule(chat, 3, work, [0, 1, 1, 3])
    before = chat.generation_stats()["compilations"]
    run_schedule(chat, 3, work, [0, 0, 3, 9])
    run_schedule(chat, 3, work[::-1], [0, 0, 2, 2])
    assert chat.generation_stats()["compilations"] == before


def test_a_batch_has_few_more_rows_than_seats(chat):
    rolling, row = RollingBatch(chat.generation_engine(), 20), row_of(chat, [user("what?")])
    sizes, seats = [], []
    for count in (1, 2, 5, 20):
        while len(seats) < count:
            seats.append(join(chat, rolling, row, request(64, stop_ids=())))
        advance(rolling)
        sizes.append(rolling._state["token"].shape[0])
    for count in (17, 16, 4, 3, 1):
        rolling.leave([seats.pop(len(seats) // 2) for _ in range(len(seats) - count)])
        advance(rolling)
        sizes.append(rolling._state["token"].shape[0])
    assert sizes == [1, 4, 16, 20, 20, 16, 4, 4, 1]
    while not seats[0].ended:
        advance(rolling)
    assert_alone(chat, seats[0], row)


def test_a_row_that_ends_does_not_stop_the_others(chat):
    rolling = RollingBatch(chat.generation_engine(), 2)
    row = row_of(chat, [user("what?")])
    long, short = (join(chat, rolling, row, request(n, stop_ids=())) for n in (12, 3))
    advance(rolling)
    assert short.ended and len(short.ids) == 3 and len(long.ids) == 1 + STEPS
    advance(rolling)
    advance(rolling)
    assert long.ended and len(long.ids) == 12 and len(short.ids) == 3


def test_rows_join_and_leave_while_tokens_are_on_their_way(chat):
    rolling = RollingBatch(chat.generation_engine(), 4)
    rows = [row_of(chat, [user(text)]) for text in ("what?", "which one?", "why")]
    wanted = request(9, stop_ids=())
    stays, leaves = (join(chat, rolling, row, wanted) for row in rows[:2])
    rolling.advance()
    known = 1 if keras.backend.backend() == "jax" else 1 + STEPS  # Others are not computed beside.
    assert len(stays.ids) == len(leaves.ids) == known
    cache = rolling.leave([leaves], keep=True)[0]
    joins = join(chat, rolling, rows[2], wanted)
    assert len(stays.ids) == 1 + STEPS
    assert cache[0][0].shape[1] >= leaves.start + known
    while not joins.ended:
        advance(rolling)
    for seat, row in ((stays, rows[0]), (joins, rows[2])):
        assert_alone(chat, seat, row)


def test_what_cannot_join(chat):
    engine, rolling = chat.generation_engine(), RollingBatch(chat.generation_engine(), 1)
    row = row_of(chat, [user("what?")])
    two = {"text_tokens": np.full((2, 4), 70, "int32")}
    with pytest.raises(ValueError, match="has one row"):
        join(chat, rolling, two, Request(3, find_sampler("greedy"), np.arange(2)))
    with pytest.raises(ValueError, match="1 rows were read for 2"):
        join(chat, RollingBatch(engine, 2), row, request(3), request(3))
    join(chat, rolling, row, request(3))
    with pytest.raises(ValueError, match="1 rows cannot join: 0 of 1 are free"):
        join(chat, rolling, row, request(3))
    with pytest.raises(ValueError, match="rows=0"):
        RollingBatch(engine, 0)
    assert CHAT_IMAGE_ID not in rolling.seats[0].ids
