"""The computations of generation, as pure functions of arrays: encode, prefill, choose, decode.

A state is a dict of tensors: `cache` and `mask` bool[B, L] over its slots (slots still free are
True; causality hides them), and per row `token` int32[B] (chosen last, not in the cache yet),
`ended` bool[B], `ids` int32[B, N], `logprobs` float32[B, N], `held` bool[B, V] (ids that the row
holds; only for samplers that penalise them), `top_ids` int32[B, N, K] and `top_logprobs`
float32[B, N, K] (the likeliest ids of each step; only where they are asked for).
"""

from dataclasses import dataclass, field
from typing import Any

from keras import ops

from dl_techniques.generation.sampling import draw, penalised, penalty_of
from dl_techniques.layers.cache_slots import write_slots


@dataclass(frozen=True)
class Choice:
    """What of the choice of tokens is compiled in; the sampler's numbers are not.

    Attributes:
        greedy: Every row takes its likeliest id; nothing is drawn.
        penalises: Apply the repetition penalty.
        processors: Functions (logits float32[B, V], ids int32[B, N], i) -> logits, where ids[:, :i]
            are chosen already; applied in this order, before the sampler.
        top_logprobs: K, how many of the likeliest ids of each step are told.
        known_ids: How many ids have a text; of further ones none is chosen or told. None: all.
    """

    greedy: bool = True
    penalises: bool = False
    processors: tuple = field(default=())
    top_logprobs: int = 0
    known_ids: int | None = None


def encode(model, images):
    """Return float[N, T, D] for float[N, H, W, 3]."""
    return model.encode_vision(images)


def prefill(model, inputs: dict, cache, mask, start):
    """Read prompts into a cache.

    Args:
        model: A `VisionLanguageModel`.
        inputs: `text_tokens` int32[B, T], `attention_mask` bool[B, T], and with images
            `vision_embeds` float[B, I, T', D] and `num_images` int32[B].
        cache: Of L slots, filled before `start`; empty for a new one.
        mask: bool[B, L].
        start: The slot of the first token.

    Returns:
        (float32[B, V] logits of the last token, cache, mask).
    """
    fused = model.embed(inputs)
    decoder = model.language_decoder
    cache = cache or decoder.make_cache(*mask.shape)
    mask = write_slots(mask, fused["attention_mask"], start)
    context = {name: fused[name] for name in ("context", "context_mask") if name in fused}
    image_ids = fused.get("image_ids")
    if image_ids is not None:
        free = ops.zeros(ops.shape(mask), dtype=image_ids.dtype)
        image_ids = write_slots(free, image_ids, start)
    hidden, cache = decoder(
        fused["inputs"],
        attention_mask=mask,
        image_ids=image_ids,
        cache=cache,
        cache_index=start,
        return_hidden=True,
        **context,
    )
    return _logits(model, hidden[:, -1]), cache, mask


def advance(model, tokens, cache, mask, slot):
    """Return (float32[B, V] logits after int32[B] tokens, which take a slot; the cache)."""
    hidden, cache = model.language_decoder(
        ops.expand_dims(tokens, 1),
        attention_mask=mask,
        cache=cache,
        cache_index=slot,
        return_hidden=True,
    )
    return _logits(model, hidden[:, 0]), cache


def score(model, logits, ids, cache, mask, start, known_ids: int | None):
    """Return the log-probability of each of int32[B, T] ids given all before it, float32[B, T].

    With it bool[B, T]: whether `choose` could take the id and none that is likelier. `logits`
    float32[B, V] are what `prefill` returned, `start` is the slot of the first id, `known_ids` is
    that of `Choice`.
    """
    later, _ = model.language_decoder(
        ids, attention_mask=mask, cache=cache, cache_index=start, return_hidden=True
    )
    later = _logits(model, later[:, :-1])
    logits = ops.concatenate([ops.expand_dims(logits, 1), later], axis=1)
    ids = ops.expand_dims(ids, 2)
    chosen = ops.take_along_axis(logits, ids, axis=2)[..., 0]
    scores = _without_image_marks(model, _known(model, logits, known_ids))
    likeliest = ops.take_along_axis(scores, ids, axis=2)[..., 0] >= ops.max(scores, axis=-1)
    return chosen - ops.logsumexp(logits, axis=-1), likeliest


def _known(model, logits, known_ids):
    """Leave out ids without a text; see `Choice`."""
    if known_ids is None:
        return logits
    return ops.where(ops.arange(model.vocab_size) < known_ids, logits, -float("inf"))


def _without_image_marks(model, scores):
    if not model.image_mark_ids:
        return scores
    marks = ops.convert_to_tensor(model.image_mark_ids, dtype="int32")
    places = ops.expand_dims(ops.arange(model.vocab_size, dtype="int32"), 1)
    return ops.where(ops.any(places == marks, axis=1), -float("inf"), scores)


def choose(model, logits, state: dict, i, options: dict, choice: Choice) -> dict:
    """Return the state with the i-th new token chosen from float32[B, V] logits.

    `options` holds `settings` of the sampler, `uniform` float32[B, N], `stop_ids` int32[K] and
    `pad_id` int32[]; where rows differ, `settings` float32[B, 5], `stop_ids` int32[B, K] and
    `pad_id` int32[B].
    """
    total = ops.logsumexp(logits, axis=-1)
    scores = known = _known(model, logits, choice.known_ids)
    if choice.penalises:
        scores = penalised(scores, state["held"], penalty_of(options["settings"]))
    for processor in choice.processors:
        scores = processor(scores, state["ids"], i)
    scores = _without_image_marks(model, scores)
    if choice.greedy:
        token = ops.cast(ops.argmax(scores, axis=-1), "int32")
    else:
        token = draw(scores, options["settings"], ops.take(options["uniform"], i, axis=1))
    column = ops.expand_dims(token, 1)
    logprob = ops.take_along_axis(logits, column, axis=1)[:, 0] - total
    ended = state["ended"]
    token = ops.where(ended, options["pad_id"], token)
    logprob = ops.where(ended, 0.0, logprob)
    is_stop = ops.any(ops.equal(ops.expand_dims(token, 1), options["stop_ids"]), axis=1)
    found = {"ids": token, "logprobs": logprob}
    if choice.top_logprobs:
        top_logits, found["top_ids"] = ops.top_k(known, choice.top_logprobs)
        found["top_logprobs"] = top_logits - ops.expand_dims(total, 1)
    new = {
        **state,
        "token": token,
        "ended": ops.logical_or(ended, is_stop),
        **{name: _with_ith(state[name], i, value) for name, value in found.items()},
    }
    if choice.penalises:
        is_token = ops.equal(ops.arange(model.vocab_size), ops.expand_dims(token, 1))
        new["held"] = ops.logical_or(state["held"], is_token)
    return new


def step(model, state: dict, i, start, options: dict, choice: Choice) -> dict:
    """Return the state after the token chosen last went through the model and the i-th was chosen.

    `start` is the slot of the first new token, int32[] or each row's int32[B]; the one chosen last
    takes slot start + i - 1.
    """
    # Rows that have ended go on writing behind their end, but not behind the cache's.
    slot = ops.minimum(start + i - 1, ops.shape(state["mask"])[1] - 1)
    logits, cache = advance(model, state["token"], state["cache"], state["mask"], slot)
    return choose(model, logits, {**state, "cache": cache}, i, options, choice)


def decode(
    model, state: dict, i, limit, start, options: dict, choice: Choice, transform=lambda f: f
) -> tuple[Any, dict]:
    """Choose the tokens i, i + 1, ... limit - 1, or until every row has ended.

    `transform` may give the step, a function of arrays, another form.

    Returns:
        (the number of tokens chosen, state).
    """

    def goes_on(i, state):
        return ops.logical_and(i < limit, ops.logical_not(ops.all(state["ended"])))

    one_step = transform(lambda *arrays: step(model, *arrays, choice))

    def body(i, state):
        return i + 1, one_step(state, i, start, options)

    return ops.while_loop(goes_on, body, (i, state))


def _with_ith(values, i, new):
    """Return values[B, N, ...] with new[B, ...] as the i-th of each row."""
    is_ith = ops.reshape(ops.arange(values.shape[1]) == i, (-1, *[1] * (len(values.shape) - 2)))
    return ops.where(is_ith, ops.cast(ops.expand_dims(new, 1), values.dtype), values)


def _logits(model, hidden):
    logits = model.language_decoder.token_embedding(hidden, reverse=True)
    return ops.cast(logits, "float32")
