"""A conversation's next turn reads only what is new, and answers as if it had read everything."""

import gc

import numpy as np
import pytest
from keras import ops
from tiny_chat import (
    CHARACTERS,
    assistant,
    chat_model,
    count_programs,
    letters,
    picture,
    user,
)
from tiny_models import TOKENS_PER_IMAGE, tiny_nanovlm
from tiny_nvlm import tiny_nvlm
from tiny_nvlm_chat import nvlm_chat_model

from dl_techniques.generation import BeamSearch, Sampler, Session
from dl_techniques.generation.buckets import bucket
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.generation.prompts import Prompt, read_prompt
from dl_techniques.generation.session import has_sessions, image_spans

NEW = 12
OPTIONS = {"logits_processors": [letters], "return_logprobs": True}


def assert_fresh(model, session, messages, new=NEW, **options):
    """Check a turn against the whole conversation read anew; return the answer."""
    options = OPTIONS | options
    text, logprobs = model.generate(messages, new, session=session, **options)
    expected, fresh = model.generate(messages, new, **options)
    assert text == expected
    np.testing.assert_allclose(logprobs, fresh, atol=1e-5)
    return text


def prompt_length(model, messages):
    return len(model.processor.encode_prompt(messages).token_ids)


@pytest.mark.parametrize(
    "sampler",
    ["greedy", Sampler(temperature=1.5, top_k=9), Sampler(temperature=0, repetition_penalty=3.0)],
    ids=["greedy", "sampled", "penalised"],
)
def test_every_turn_is_as_if_read_anew(chat, sampler):
    session, messages, known = Session(), [], 0
    pictures = {0: [picture(0), picture(1)], 2: [picture(2)]}
    for turn in range(4 if sampler == "greedy" else 2):
        messages.append(user(f"what about {turn}?", *pictures.get(turn, [])))
        text = assert_fresh(chat, session, messages, sampler=sampler, seed=turn)
        # All of the last prompt and all new tokens but the last, which the model never read.
        assert session.reused == known
        known = prompt_length(chat, messages) + NEW - 1
        messages.append(assistant(text))


def test_what_is_known_is_not_read_again(chat, monkeypatch):
    counts, lengths = count_programs(monkeypatch, chat), []
    programs = chat.generation_engine().programs
    prefill = programs.prefill

    def watched(inputs, *args):
        lengths.append(int(np.asarray(inputs["attention_mask"]).sum()))
        return prefill(inputs, *args)

    monkeypatch.setattr(programs, "prefill", watched)
    session, messages = Session(), [user("what is in these images?", picture(0), picture(1))]
    text = chat.generate(messages, NEW, session=session, logits_processors=[letters])
    messages += [assistant(text), user("and?")]
    chat.generate(messages, NEW, session=session, logits_processors=[letters])
    assert counts["encode"] == 1
    # The answer's last letter and its end token, then the question.
    assert lengths == [prompt_length(chat, messages[:1]), 2 + len("question: and? answer:")]


def test_the_same_prompt_again_reads_its_last_token(chat):
    session, messages = Session(), [user("once more")]
    for expected in (0, prompt_length(chat, messages) - 1):
        assert_fresh(chat, session, messages)
        assert session.reused == expected


def test_an_edited_message_is_noticed(chat):
    session = Session()
    first = [user("what is it? a dog"), assistant("yes"), user("sure?")]
    assert_fresh(chat, session, first)
    edited = [user("what is it? a cat"), assistant("yes"), user("sure?")]
    assert_fresh(chat, session, edited)
    assert session.reused == 1 + len("question: what is it? a ")
    assert_fresh(chat, session, [user("other")])
    assert session.reused == 1 + len("question: ")


def test_another_image_of_the_same_size_is_noticed(chat):
    session = Session()
    assert_fresh(chat, session, [user("which?", picture(0), picture(1))])
    assert_fresh(chat, session, [user("which?", picture(0), picture(2))])
    assert session.reused == 1 + TOKENS_PER_IMAGE
    assert_fresh(chat, session, [user("which?", picture(3), picture(2))])
    assert session.reused == 1


def test_a_word_and_the_image_behind_it_are_both_noticed(chat):
    def turn(text, image):
        parts = [{"type": "text", "text": text}, {"type": "image", "image": image}]
        return [{"role": "user", "content": parts}]

    session = Session()
    assert_fresh(chat, session, turn("a dog ", picture(0)))
    assert_fresh(chat, session, turn("a cat ", picture(1)))
    assert session.reused == 1 + len("question: a ")


def test_who_may_share_half_is_never_overlooked(chat):
    rng = np.random.default_rng(0)

    def random_turn():
        words = ["".join(rng.choice(["a", "b"], rng.integers(0, 9))) for _ in range(2)]
        parts = [{"type": "text", "text": words[0]}]
        parts += [
            {"type": "image", "image": picture(k)} for k in rng.integers(0, 2, rng.integers(3))
        ]
        parts.append({"type": "text", "text": words[1]})
        prompt = read_prompt(chat.processor, [{"role": "user", "content": parts}])
        return prompt, image_spans(chat, prompt)

    turns, found = [random_turn() for _ in range(60)], []
    for kept, spans in turns:
        session = Session()
        session._ids, session._spans, session._model = kept.ids, spans, chat
        for prompt, others in turns:
            shares = 2 * session.shared(chat, prompt, others) >= session.known
            may = session.may_share_half(prompt.ids, others)
            assert may or not shares
            found.append((shares, may))
    # One look tells most of them.
    assert sum(shares for shares, _ in found) < sum(may for _, may in found) < len(found) / 2
    assert not Session().may_share_half(prompt.ids, others)


def test_an_image_is_never_cut(chat):
    # A prompt that ends within an image's placeholders is known up to the image only.
    session = Session()
    one = {"role": "user", "content": [{"type": "text", "text": "see "}]}
    two = {"role": "user", "content": one["content"] + [{"type": "image", "image": picture(0)}]}
    assert_fresh(chat, session, [one])
    assert_fresh(chat, session, [two])
    assert session.reused == 1 + len("question: see ")
    ids, start = chat.processor.encode_prompt([two]).token_ids, session.reused
    for known in range(start + 1, start + TOKENS_PER_IMAGE):
        session._ids = session._ids[:known]
        assert ids[known] == CHARACTERS
        assert_fresh(chat, session, [two])
        assert session.reused == start


def test_the_cache_grows_and_falls_back_at_the_position_limit(chat):
    session, messages, reused = Session(), [], []
    with pytest.raises(ValueError, match="max_positions=256"):
        while True:
            messages.append(user("a question about it"))
            text = assert_fresh(chat, session, messages)
            reused.append(session.reused)
            messages.append(assistant(text))
    # From 48 slots to all 256; when the gaps between the turns take the rest, all is read anew.
    assert len(reused) >= 4
    assert reused[0] == 0 and all(reused[1:3]) and 0 in reused[3:]


def test_the_answer_needs_room_behind_the_gaps(chat):
    session, messages = Session(), [user("a" * 101)]
    messages.append(assistant(assert_fresh(chat, session, messages)))
    messages.append(user("b" * 60))
    used, length = session._slots[-1] + 1, prompt_length(chat, messages)
    new = 256 - length
    chunk = bucket(length - len(session._ids), TOKEN_BUCKET)
    # The new prompt would fit behind the old one and its padding, but not its answer too.
    assert used + chunk <= 256 < used + chunk + new - 1
    assert_fresh(chat, session, messages, new)
    assert session.reused == 0


def test_a_session_goes_on_after_a_stream_that_was_closed_early(chat):
    session, messages = Session(), [user("tell me", picture(0))]
    options = {"session": session, "stream": True, "logits_processors": [letters]}
    stream = chat.generate(messages, NEW, **options)
    text = next(stream)
    stream.close()
    messages += [assistant(text), user("go on")]
    assert_fresh(chat, session, messages)
    assert session.reused > prompt_length(chat, messages[:1]) - 1
    # One that was never begun leaves nothing behind.
    stream = chat.generate(messages, NEW, **options)
    stream.close()
    assert_fresh(chat, session, messages)
    assert session.reused == 0


def test_streams_of_one_session_do_not_mix(chat):
    session = Session()
    options = {"session": session, "stream": True, "logits_processors": [letters]}
    questions = [[user("what is a?")], [user("what is b and c?")]]
    streams = [chat.generate(question, NEW, **options) for question in questions]
    texts = ["".join(stream) for stream in streams]
    for question, text in zip(questions, texts, strict=True):
        assert_fresh(chat, session, [*question, assistant(text), user("and?")])


def test_a_failed_turn_leaves_nothing_behind(chat, monkeypatch):
    session, messages = Session(), [user("what?")]
    assert_fresh(chat, session, messages)
    programs = chat.generation_engine().programs

    def fails(*args):
        raise KeyboardInterrupt

    for stream in (False, True):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(programs, "decode", fails)
            result = chat.generate(
                messages, NEW, session=session, stream=stream, logits_processors=[letters]
            )
            list(result)
        assert_fresh(chat, session, messages)
        assert session.reused == 0


def test_a_refused_turn_changes_nothing(chat):
    session, messages = Session(), [user("what?")]
    assert_fresh(chat, session, messages)
    for wrong in (
        {"seed": -1},
        {"max_new_tokens": 1000},
        {"sampler": BeamSearch()},
        {"stop_strings": [""]},
    ):
        with pytest.raises(ValueError):
            chat.generate(messages, **{"max_new_tokens": NEW, "session": session} | wrong)
    assert_fresh(chat, session, messages)
    assert session.reused == prompt_length(chat, messages) - 1


def test_clear_and_other_models(chat):
    session, messages = Session(), [user("what?")]
    assert_fresh(chat, session, messages)
    session.clear()
    assert_fresh(chat, session, messages)
    assert session.reused == 0
    with pytest.raises(ValueError, match="cannot change its model"):
        chat_model().generate(messages, NEW, session=session)
    with pytest.raises(ValueError, match="one conversation, got 2"):
        chat.generate([messages, messages], NEW, session=session)
    with pytest.raises(ValueError, match="one conversation, got 1 rows of arrays"):
        chat.generate(np.full((1, 4), 9), NEW, session=session)
    prefix = tiny_nanovlm("prefix", vocab_size=CHARACTERS + 1)
    prefix.processor = chat.processor
    with pytest.raises(ValueError, match="placeholders or tile_tag_ids"):
        prefix.generate(messages, NEW, session=Session())


def test_a_used_up_cache_is_not_kept(chat):
    session = Session()
    chat.generate([user("what?")], NEW, session=session)
    gc.collect()
    assert session._cache is not None
    session.begin(chat, _prompt(chat, [user("other")]), NEW)
    assert session._cache is None


def _prompt(model, messages):
    from dl_techniques.generation.prompts import read_prompt

    return read_prompt(model.processor, messages)


@pytest.fixture(scope="module", params=["cross_attention", "hybrid"])
def crossing(request):
    """An NVLM that reads tiles by cross-attention."""
    return nvlm_chat_model(request.param)


def only_letters(logits, ids, i):
    """`letters`, of which there are fewer than ids here."""
    known = letters(logits[:, : CHARACTERS + 1], ids, i)
    return ops.pad(known, [[0, 0], [0, logits.shape[1] - CHARACTERS - 1]], constant_values=-1e9)


def test_images_by_cross_attention_stay_known_until_there_are_others(crossing):
    options = {"logits_processors": [only_letters]}

    def ask(*messages):
        text = assert_fresh(crossing, session, list(messages), **options)
        return [*messages, assistant(text)]

    def wide(seed):
        return np.concatenate([picture(seed), picture(seed + 1)], axis=1)

    session = Session()
    seen = ask(user("see this ", wide(0)))
    known = prompt_length(crossing, seen[:1]) + NEW - 1
    ask(*seen, user("and?"))
    assert session.reused == known
    ask(*seen, user("and?", wide(2)))
    assert session.reused == 0
    ask(user("see this "))
    assert session.reused == 0


def test_a_session_needs_tags_of_tiles():
    model = tiny_nvlm("cross_attention", tile_tag_ids=None)
    assert not has_sessions(model)
    with pytest.raises(ValueError, match="placeholders or tile_tag_ids"):
        Session().begin(model, Prompt([8, 9], [], [], []), 4)
