"""The one function behind `VisionLanguageModel.generate`."""

from collections.abc import Iterable, Iterator

import numpy as np

from dl_techniques.generation.beam_search import BeamSearch, beam_search
from dl_techniques.generation.engine import Request
from dl_techniques.generation.prompts import as_conversations, prompt_batch, read_prompt
from dl_techniques.generation.sampling import SAMPLERS, Sampler
from dl_techniques.generation.text_stream import TextStream

# Between looks at the text for stop strings.
CHUNK = 16


def generate(
    model,
    inputs,
    max_new_tokens,
    sampler,
    stop_ids,
    stop_strings,
    seed,
    stream,
    return_logprobs,
    vision_embeds,
    pad_token_id,
    logits_processors,
    session,
):
    """See `VisionLanguageModel.generate`."""
    sampler = find_sampler(sampler)
    conversations = as_conversations(inputs)
    processor = getattr(model, "processor", None)
    stop_strings = _checked_stop_strings(stop_strings)
    if processor is None and (conversations is not None or stop_strings):
        raise ValueError(
            "Questions and stop strings need a tokenizer: set model.processor (load_checkpoint "
            "does), or give arrays with 'text_tokens'."
        )
    if stop_ids is None:
        stop_ids = () if processor is None else processor.stop_ids
    stop_ids = _checked_stop_ids(model, stop_ids)
    if pad_token_id is None:
        pad_token_id = 0 if processor is None else processor.pad_token_id
    _check_pad(model, pad_token_id)
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be an int of at least 1.")
    logits_processors = _checked_processors(logits_processors)
    if stream and return_logprobs:
        raise ValueError("return_logprobs needs the whole result: stream=False.")
    searches = isinstance(sampler, BeamSearch)
    if searches:
        refused = {
            "stream": stream,
            "session": session,
            "logits_processors": logits_processors,
            "stop_strings": stop_strings,
        }
        wrong = [name for name, value in refused.items() if value]
        if wrong:
            raise ValueError(f"Beam search does not go with {wrong}.")
    single = False
    if conversations is None:
        if session is not None:
            raise ValueError("A session needs a conversation, not arrays.")
        batch = array_batch(model, inputs, vision_embeds)
        rows, positions = len(batch["text_tokens"]), prompt_positions(model, batch)
    else:
        conversations, single = conversations
        rows = len(conversations)
        if vision_embeds is not None:
            raise ValueError("vision_embeds go with arrays; a conversation holds its images.")
        if session is not None and rows > 1:
            raise ValueError(f"A session holds one conversation, got {rows}.")
        prompts = [read_prompt(processor, conversation) for conversation in conversations]
        positions = longest_prompt(model, prompts)
    check_length(model, positions, max_new_tokens, "max_new_tokens")
    seeds = row_seeds(seed, rows)
    # Everything is checked: from here on something is computed.
    engine, turn = model.generation_engine(), None
    if conversations is not None:
        if session is not None:
            turn = session.begin(model, prompts[0], max_new_tokens)
            prompts = [turn.part]
        batch = prompt_batch(engine, model, prompts, model.vision_cache)
        model.batch_checks.check(batch)
    if searches:
        ids, logprobs = beam_search(engine, batch, max_new_tokens, sampler, stop_ids, pad_token_id)
        texts = None if conversations is None else _texts(processor, ids, stop_ids)
        return _result(ids, texts, single, logprobs if return_logprobs else None)
    known = () if turn is None else tuple(turn.known)
    request = Request(
        max_new_tokens, sampler, seeds, stop_ids, pad_token_id, logits_processors, known
    )
    texts = None
    if conversations is not None or stop_strings:
        texts = [TextStream(processor.decode, stop_ids, stop_strings) for _ in seeds]
    run = _Run(engine, batch, request, texts, bool(stop_strings), session, turn)
    if stream:
        return run.pieces(single) if conversations is not None else run.columns()
    ids, logprobs = run.finish()
    texts = None if conversations is None else [text.text for text in texts]
    return _result(ids, texts, single, logprobs if return_logprobs else None)


class _Run:
    """One request on its way."""

    def __init__(self, engine, batch, request, texts, by_text, session, turn):
        earlier = None if turn is None else turn.earlier
        self._begin = lambda: engine.start(batch, request, earlier)
        self._request, self._texts, self._by_text = request, texts, by_text
        self._session, self._turn = session, turn
        self._read = 0

    def finish(self):
        """Return ids and log-probabilities, whole."""
        decoding = self._begin()
        chunk = CHUNK if self._by_text else self._request.max_new_tokens
        self._push(decoding)
        while not decoding.ended.all():
            decoding.advance(decoding.done + chunk)
            self._push(decoding)
        ids, logprobs = decoding.ids(), decoding.logprobs()
        self._keep(decoding)
        if self._by_text:
            lengths = np.array([[text.length] for text in self._texts])
            after = np.arange(ids.shape[1]) >= lengths
            ids = np.where(after, self._request.pad_id, ids).astype("int32")
            logprobs = np.where(after, 0, logprobs).astype("float32")
        return ids, logprobs

    def columns(self) -> Iterator[np.ndarray]:
        """Yield int32[B]: the next token of every row."""
        decoding = self._begin()
        for i in range(self._request.max_new_tokens):
            decoding.advance(i + 1)
            self._push(decoding)
            column = decoding.ids()[:, i]
            over = [t.length <= i for t in self._texts] if self._by_text else False
            yield np.where(over, self._request.pad_id, column).astype("int32")
            if decoding.ended.all():
                return

    def pieces(self, single: bool) -> Iterator:
        """Yield the next piece of text, of several rows a list of them; empty ones are left out."""
        decoding = self._begin()
        try:
            while True:
                pieces = self._push(decoding)
                if any(pieces):
                    yield pieces[0] if single else pieces
                if decoding.ended.all():
                    break
                decoding.advance(decoding.done + 1)
        except GeneratorExit:  # Closed early; what was read and chosen stays known.
            self._keep(decoding)
            raise
        self._keep(decoding)

    def _push(self, decoding) -> list[str]:
        """Read the new ids; return the new pieces of text."""
        if self._texts is None:
            return []
        ids = decoding.ids()[:, self._read : decoding.done]
        pieces = [text.push(row) for text, row in zip(self._texts, ids, strict=True)]
        self._read = decoding.done
        if self._by_text:
            decoding.end(np.array([text.ended for text in self._texts]))
        if decoding.ended.all():
            pieces = [p + text.finish() for p, text in zip(pieces, self._texts, strict=True)]
        return pieces

    def _keep(self, decoding):
        if self._session is not None:
            fed = decoding.ids()[0, : decoding.done - 1]
            self._session.finish(self._turn, decoding.take_cache(), decoding.start, fed)


def find_sampler(sampler) -> Sampler | BeamSearch:
    """Return the sampler of a name, or the one given.

    Raises:
        ValueError: for an unknown name or another object.
    """
    if isinstance(sampler, Sampler | BeamSearch):
        return sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(
            f"sampler={sampler!r} must be a Sampler, a BeamSearch or one of {sorted(SAMPLERS)}."
        )
    return SAMPLERS[sampler]


def row_seeds(seed, rows: int) -> np.ndarray:
    """Return int64[B]: seed, seed + 1, ... or the given seed of each row."""
    seeds = np.asarray(seed)
    if seeds.ndim == 0 and seeds.dtype.kind in "iu":
        seeds = seeds + np.arange(rows)
    if seeds.shape != (rows,) or seeds.dtype.kind not in "iu" or (seeds < 0).any():
        raise ValueError(f"seed={seed!r} must be an int >= 0, or one for each of {rows} rows.")
    return seeds.astype("int64")


def prompt_positions(model, batch) -> int:
    """Return the positions of the longest prompt, images included."""
    mask, tokens = batch.get("attention_mask"), batch["text_tokens"]
    longest = tokens.shape[1] if mask is None else int(np.sum(np.asarray(mask), axis=1).max())
    if model.fusion == "placeholder":
        return longest
    embeds, images = batch.get("vision_embeds"), batch.get("images")
    if embeds is not None:
        return longest + embeds.shape[1] * embeds.shape[2]
    if images is None:
        return longest
    slots = images.shape[1] if len(images.shape) == 5 else 1
    return longest + (slots * model.count_image_tokens(*images.shape[-3:-1]) if slots else 0)


def longest_prompt(model, prompts) -> int:
    """Return the positions of the longest of read prompts, images included."""
    longest = max(len(prompt.ids) for prompt in prompts)
    if model.fusion == "placeholder":
        return longest
    # Images before the text take as many slots in every row.
    return longest + model.tokens_per_image * max(len(prompt.images) for prompt in prompts)


def array_batch(model, inputs, vision_embeds=None) -> dict:
    """Return a checked batch of arrays.

    Raises:
        ValueError: if it is packed, empty, or malformed.
    """
    batch = dict(inputs) if isinstance(inputs, dict) else {"text_tokens": inputs}
    batch["text_tokens"] = np.asarray(batch["text_tokens"])
    if vision_embeds is not None:
        batch["vision_embeds"] = vision_embeds
    refused = sorted({"segment_ids", "positions", "turn_ids"} & set(batch))
    if refused:
        raise ValueError(f"Prompts cannot be packed: remove {refused}.")
    model.batch_checks.check(batch)
    if not batch["text_tokens"].size:
        raise ValueError(f"text_tokens {batch['text_tokens'].shape} hold no prompt.")
    return batch


def check_length(model, positions: int, new_tokens: int, name: str) -> None:
    """Raise ValueError if the prompts leave no room for so many tokens."""
    limit = model.language_decoder.max_positions
    if positions + new_tokens > limit:
        raise ValueError(
            f"{positions} prompt positions + {name}={new_tokens} are more than "
            f"max_positions={limit}: shorten the prompts or ask for fewer tokens."
        )


def _check_pad(model, pad_token_id):
    if not 0 <= pad_token_id < model.vocab_size or pad_token_id == model.image_token_id:
        raise ValueError(
            f"pad_token_id={pad_token_id} must lie in [0, vocab_size={model.vocab_size}) and not "
            f"be the image placeholder {model.image_token_id}."
        )


def _checked_stop_ids(model, stop_ids) -> tuple[int, ...]:
    ids = np.asarray(list(stop_ids) if isinstance(stop_ids, Iterable) else stop_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"stop_ids={stop_ids!r} must be a list of ids.")
    wrong = [int(i) for i in ids if not 0 <= i < model.vocab_size]
    if wrong:
        raise ValueError(f"stop_ids {wrong} are outside [0, vocab_size={model.vocab_size}).")
    return tuple(int(i) for i in ids)


def _checked_stop_strings(strings) -> tuple[str, ...]:
    good = isinstance(strings, list | tuple) and all(isinstance(s, str) and s for s in strings)
    if not good:
        raise ValueError(f"stop_strings={strings!r} must be a list of texts, none empty.")
    return tuple(strings)


def _checked_processors(processors) -> tuple:
    if not isinstance(processors, list | tuple) or not all(map(callable, processors)):
        raise ValueError(f"logits_processors={processors!r} must be a list of functions.")
    return tuple(processors)


def _texts(processor, ids, stop_ids):
    texts = []
    for row in ids:
        text = TextStream(processor.decode, stop_ids)
        text.push(row)
        text.finish()
        texts.append(text.text)
    return texts


def _result(ids, texts, single, logprobs):
    result = ids if texts is None else texts[0] if single else texts
    return result if logprobs is None else (result, logprobs)
