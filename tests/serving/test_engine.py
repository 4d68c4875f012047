"""The engine's answers are those of `generate`; limits, time-outs and cancelling."""

import threading
import time
from collections import Counter
from functools import partial

import keras
import numpy as np
import pytest
from tiny_chat import assistant, chat_model, count_programs, picture, png, user
from tiny_nvlm_chat import nvlm_chat_model
from waiting import ROWS, idle, wait_until

from dl_techniques.generation import Sampler
from dl_techniques.generation.arguments import TooLongError
from dl_techniques.generation.rolling_batch import STEPS, RollingBatch
from dl_techniques.generation.sampling import GREEDY
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.reading_groups import reading_groups
from dl_techniques.serving.requests import (
    ChatRequest,
    ClosedError,
    FailedError,
    FullError,
    TimedOutError,
)

NEW = 14
SAMPLED = Sampler(temperature=1.5, top_k=9)


def ask(text="what?", *images, new=NEW, **options):
    return ChatRequest([user(text, *images)], new, **options)


def expected(model, request):
    return model.generate(
        request.messages,
        request.max_new_tokens,
        request.sampler,
        seed=request.seed,
        stop_strings=request.stop_strings,
        return_logprobs=True,
    )


def test_answers_of_many_at_once_are_those_of_generate(engine, chat, held):
    requests = [
        ask(
            "abcdefg"[: number % 5],
            *[picture(number)] * (number % 3 == 0),
            new=3 + number % 12,
            sampler=SAMPLED if number % 4 == 1 else Sampler(temperature=0),
            seed=number,
            client=str(number % 3),
        )
        for number in range(8)
    ]
    tickets = [engine.submit(request) for request in requests]
    held()
    events = [list(ticket) for ticket in tickets]
    idle(engine)
    for request, ticket, got in zip(requests, tickets, events, strict=True):
        text, logprobs = expected(chat, request)
        assert "".join(event.text for event in got) == text
        own = [logprob for event in got for logprob in event.logprobs]
        assert len(own) == ticket.new_tokens == sum(len(event.ids) for event in got)
        np.testing.assert_allclose(own, logprobs[0, : len(own)], atol=1e-5)
        length = ticket.new_tokens == request.max_new_tokens
        assert got[-1].finish_reason == "length" or not length


def test_those_who_wait_are_read_together(engine, chat, held, monkeypatch):
    counts = count_programs(monkeypatch, chat)
    requests = [ask("a" * n, picture(20 + n), client=str(n)) for n in range(ROWS)]
    tickets = [engine.submit(request) for request in requests]
    held()
    texts = [ticket.result() for ticket in tickets]
    idle(engine)
    assert counts["encode"] == counts["prefill"] == 1
    assert texts == [expected(chat, request)[0] for request in requests]


def test_a_seed_gives_the_same_draws_in_any_company(engine, held):
    request = ask(sampler=SAMPLED, seed=5)
    others = [engine.submit(ask(text, sampler=SAMPLED, seed=9)) for text in ("a", "bc")]
    ticket = engine.submit(request)
    held()
    first = ticket.result()
    [other.result() for other in others]
    assert engine.submit(request).result() == first
    assert engine.submit(ask(sampler=SAMPLED, seed=6)).result() != first


def test_stop_strings_end_an_answer(engine, chat):
    text = engine.submit(ask("stop")).result()
    stop = text[3:5]
    ticket = engine.submit(ask("stop", stop_strings=(stop,)))
    events = list(ticket)
    assert "".join(event.text for event in events) == text[: text.index(stop)].rstrip()
    assert events[-1].finish_reason == "stop"
    assert ticket.new_tokens <= NEW


def test_an_answer_of_a_known_length(engine, chat, monkeypatch):
    request = ask("go on")
    first = next(iter(engine.submit(request))).ids[0]
    monkeypatch.setattr(engine, "stop_ids", (*engine.stop_ids, first))
    assert engine.submit(request).result() == ""
    ticket = engine.submit(ask("go on", ignore_eos=True))
    events = list(ticket)
    assert ticket.new_tokens == NEW and events[-1].finish_reason == "length"
    assert "".join(event.text for event in events)


def test_the_next_turn_reads_only_what_is_new(engine, chat):
    first = ask("tell me about it", picture(1), client="a", new=4)
    answer = engine.submit(first).result()
    messages = [*first.messages, assistant(answer or "x"), user("and?")]
    ticket = engine.submit(ChatRequest(messages, NEW, client="a"))
    text = ticket.result()
    idle(engine)
    assert text == chat.generate(messages, NEW)
    known = len(chat.processor.encode_prompt(first.messages).token_ids)
    assert ticket.reused_tokens >= known - 1
    # Another client's conversation is no help, and tells nothing.
    other = engine.submit(ChatRequest(messages, NEW, client="b"))
    assert other.result() == text and other.reused_tokens == 0


def test_turns_about_an_image_that_is_read_by_cross_attention():
    model = nvlm_chat_model("cross_attention")
    engine = ServingEngine(model, 2, max_new_tokens=16)
    first = ask("what?", picture(3))
    answer = engine.submit(first).result()
    again = [*first.messages, assistant(answer), user("why?")]
    ticket = engine.submit(ChatRequest(again, NEW))
    text = ticket.result()
    assert ticket.reused_tokens > 0
    engine.close()
    assert (answer, text) == (model.generate(first.messages, NEW), model.generate(again, NEW))


@pytest.mark.parametrize("make", [chat_model, partial(nvlm_chat_model, "cross_attention")])
def test_next_turns_of_several_conversations_are_read_together(make, monkeypatch):
    model = make()
    engine = ServingEngine(model, 4, max_new_tokens=16)
    conversations = []
    for number in range(4):
        # Their caches are used to different lengths, within what is joined.
        text = "please tell me what there is to see in it"[: 24 + 6 * number]
        first = ask(text, picture(number), client=str(number), new=3 + 3 * number)
        answer = engine.submit(first).result()
        conversations.append([*first.messages, assistant(answer or "x"), user("why"[number % 2 :])])
    idle(engine)
    counts, groups = count_programs(monkeypatch, model), []

    def grouped(begun, *limits):
        groups.extend(found := reading_groups(begun, *limits))
        return found

    monkeypatch.setattr("dl_techniques.serving.engine.reading_groups", grouped)
    with engine._condition:  # So that none is begun before all wait.
        tickets = [
            engine.submit(ChatRequest(messages, NEW - number, client=str(number)))
            for number, messages in enumerate(conversations)
        ]
    texts = [ticket.result() for ticket in tickets]
    assert counts["prefill"] == 1
    assert [[r.to_read for r in g] for g in groups] == [
        [len(r.part.ids) for r in g] for g in groups
    ]
    assert all(ticket.reused_tokens > 8 for ticket in tickets)
    # What was read together is known in turn.
    last = [*conversations[1], assistant(texts[1] or "x"), user("so?")]
    again = engine.submit(ChatRequest(last, NEW, client="1"))
    assert again.result() == model.generate(last, NEW)
    assert again.reused_tokens > tickets[1].reused_tokens + 2
    engine.close()
    for number, (text, messages) in enumerate(zip(texts, conversations, strict=True)):
        assert text == model.generate(messages, NEW - number)


def test_images_are_encoded_once(engine, chat):
    before = chat.vision_cache.stats()["misses"]
    for client in ("a", "b"):
        engine.submit(ask("see", picture(77), client=client)).result()
    assert chat.vision_cache.stats()["misses"] == before + 1


def test_full_for_a_client_and_for_all(engine, held):
    tickets = [engine.submit(ask(new=2, client="a")) for _ in range(6)]
    with pytest.raises(FullError, match="6 requests of this client are open") as error:
        engine.submit(ask(client="a"))
    assert error.value.retry_after >= 1
    tickets += [engine.submit(ask(new=2, client="b")) for _ in range(2)]
    with pytest.raises(FullError, match="8 requests are waiting"):
        engine.submit(ask(client="c"))
    held()
    assert len({ticket.result() for ticket in tickets}) == 1


def test_clients_take_turns(engine, held):
    order = []

    def listener(name):
        return lambda event: event.is_last and order.append(name)

    for number in range(5):
        engine.submit(ask(new=2, client="busy"), listener(f"busy{number}"))
    engine.submit(ask(new=2, client="rare"), listener("rare"))
    held()
    wait_until(lambda: len(order) == 6)
    assert order.index("rare") <= 1


def test_cancelled_requests_make_room(engine, held):
    tickets = [engine.submit(ask(new=60, client=str(k))) for k in range(ROWS + 1)]
    for ticket in tickets[:ROWS]:
        ticket.cancel()
    held()
    for ticket in tickets[:ROWS]:
        assert [event.finish_reason for event in ticket] == ["cancelled"]
    assert list(tickets[ROWS])[-1].finish_reason in ("stop", "length")


def test_giving_up_an_iteration_cancels(engine, monkeypatch):
    before = engine.stats()["cancelled"]
    events = iter(engine.submit(ask(new=64, ignore_eos=True)))
    next(events)
    with monkeypatch.context() as never_ends:
        never_ends.setattr(RollingBatch, "advance", lambda batch, steps: time.sleep(0.01))
        events.close()
        idle(engine)
    assert engine.stats()["cancelled"] == before + 1


def test_time_out(engine, held, monkeypatch):
    monkeypatch.setattr(engine, "timeout", 0.01)
    tickets = [engine.submit(ask(new=60)) for _ in range(2)]
    time.sleep(0.05)
    held()
    for ticket in tickets:
        with pytest.raises(TimedOutError, match="No answer within 0.01 s"):
            ticket.result()


def test_bad_requests_are_refused_at_once(engine):
    for request, message in (
        (ChatRequest([]), "takes a question"),
        (ChatRequest(["a", "b"]), "one conversation"),
        (ChatRequest([{"role": "robot", "content": "x"}]), "robot"),
        (ask(new=65), "max_new_tokens=65 is more than the 64 allowed"),
        (ask("a" * 300), "prompt positions"),
        (ask(seed=-1), "seed=-1"),
        (ask(stop_strings=("",)), "none empty"),
        (ask(top_logprobs=21), r"top_logprobs=21 must lie in \[0, 20\]"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(request)


def test_an_image_that_cannot_be_decoded_fails_alone(engine, held):
    broken = engine.submit(ask("see", png(picture(3))[:60], client="a"))
    good = engine.submit(ask(client="b"))
    held()
    with pytest.raises(ValueError, match="truncated"):
        broken.result()
    assert good.result() is not None


def test_a_failed_step_fails_those_on_their_way_only(engine, held, monkeypatch):
    def fails(steps):
        raise RuntimeError("out of memory")

    ticket = engine.submit(ask())
    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "advance", fails)
        held()
        with pytest.raises(FailedError, match="could not be computed"):
            ticket.result()
    assert engine.is_alive
    assert isinstance(engine.submit(ask()).result(), str)


def test_long_steps_are_decoded_one_by_one(engine, monkeypatch):
    turns, programs = [], engine.model.generation_engine().programs
    decode = programs.decode

    def slow(state, i, limit, *args):
        time.sleep(0.02 * limit)
        turns.append(int(limit))
        return decode(state, i, limit, *args)

    monkeypatch.setattr(programs, "decode", slow)
    engine.submit(ask(new=30, ignore_eos=True)).result()
    assert turns[3:] and set(turns[3:]) == {1}
    monkeypatch.setattr("dl_techniques.serving.engine.TURN_SECONDS", 60.0)
    turns.clear()
    engine.submit(ask(new=30, ignore_eos=True)).result()
    assert turns[0] == turns[1] == STEPS


def test_random_comings_and_goings(engine, chat):
    """Clients that join, leave early and stay get the right answers; nothing is left behind."""
    generator = np.random.default_rng(1)
    plans = [
        [(int(n), bool(gone)) for n, gone in zip(lengths, leaves, strict=True)]
        for lengths, leaves in zip(
            generator.integers(1, 15, (3, 8)), generator.random((3, 8)) < 0.3, strict=True
        )
    ]
    texts = {}

    def client(name):
        for number, (new, leaves) in enumerate(plans[name]):
            ticket = engine.submit(ask("abcd"[name : name + 1], new=new, client=str(name)))
            if leaves:
                ticket.cancel()
                list(ticket)
            else:
                texts[name, number] = ticket.result()

    threads = [threading.Thread(target=client, args=(name,)) for name in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    idle(engine)
    assert len(texts) == sum(not leaves for plan in plans for _, leaves in plan)
    for (name, number), text in texts.items():
        question = ask("abcd"[name : name + 1], new=plans[name][number][0])
        assert text == expected(chat, question)[0]
    assert not engine._queue._running


def test_close_ends_all_requests(chat):
    engine = ServingEngine(chat, 1)
    engine._turn = lambda: time.sleep(0.01)
    ticket = engine.submit(ask())
    engine.close()
    with pytest.raises(ClosedError, match="shutting down"):
        ticket.result()
    with pytest.raises(ClosedError, match="is closed"):
        engine.submit(ask())
    assert not engine.is_alive


def test_what_was_warmed_up_is_not_compiled_again():
    model = chat_model()
    engine = ServingEngine(model, 5, timeout=1e-9)

    def compiled():
        names = ("encode", "prefill", "choose", "decode")
        found = engine._batch._engine.programs._signatures
        return Counter(each[0] for each in found if each[0] in names)

    engine.warm_up()
    assert engine.timeout == 1e-9  # Compiling may take longer.
    before, engine.timeout = compiled(), 300
    assert len(before) == 4
    question = user("?", picture(0))
    for sampler in (GREEDY, Sampler(temperature=1.5, top_k=0)):
        for count in (5, 3, 1):
            engine._answer_together([[question]] * count, sampler)
        engine._answer_together([[question, assistant("!"), user("?")]], sampler)
    assert compiled() == before
    assert not engine.stats()["failed"]
    engine.close()


def test_a_model_without_room_for_a_second_turn_is_warmed_up():
    model = chat_model(max_positions=30)
    engine = ServingEngine(model, 1)
    engine.warm_up()
    assert isinstance(engine.submit(ask("?", picture(0), new=1)).result(), str)
    with pytest.raises(TooLongError):
        engine.submit(ChatRequest([user("?", picture(0)), assistant("."), user("?")], 1))
    engine.close()


def test_weights_that_change_after_close_are_seen():
    model = chat_model()
    with pytest.raises(ValueError, match="rows=0"):
        ServingEngine(model, 0)
    messages = [user("what?", picture(0))]

    def logprobs():
        return model.generate(messages, 4, return_logprobs=True)[1]

    before, (head, _) = logprobs(), model.language_decoder.head
    kernel = next(w for w in model.vision_encoder.weights if w.path.endswith("kernel"))
    for weight in (head, kernel):
        engine = ServingEngine(model, 2)
        assert engine.submit(ChatRequest(messages, 4)).result() == model.generate(messages, 4)
        engine.close()
        weight.assign(0.5 * keras.ops.convert_to_tensor(weight.value))
        after = logprobs()
        assert abs(after - before).max() > 1e-3
        before = after


def test_wrong_settings(chat):
    for options, message in (
        ({"rows": 0}, "rows=0"),
        ({"max_waiting": 0}, "most=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"prefix_bytes": -1}, "max_bytes=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            ServingEngine(chat, **options)
