"""Engine: prompts as arrays to new ids; buckets, caches and the order of the programs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from dl_techniques.generation.backends import Programs
from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.programs import Choice
from dl_techniques.generation.sampling import Sampler, uniform_numbers
from dl_techniques.generation.statistics import GenerationStatistics

TOKEN_BUCKET = 16


@dataclass(frozen=True)
class Request:
    """What to do with prompts.

    Attributes:
        max_new_tokens: N, the most new tokens per row.
        sampler: How tokens are chosen.
        seeds: int64[B], each row's own.
        stop_ids: A row ends with the first of these.
        pad_id: What stands after a row's end.
        processors: See `programs.Choice`.
        known: Ids that an earlier cache holds, for samplers that penalise them.
        top_logprobs: How many of the likeliest ids of each step are told, at most
            `rolling_batch.MOST_TOP_LOGPROBS`; only in such a batch.
    """

    max_new_tokens: int
    sampler: Sampler
    seeds: np.ndarray
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    processors: tuple = ()
    known: tuple[int, ...] = ()
    top_logprobs: int = 0


class Engine:
    """Runs the programs of one model.

    Args:
        model: A `VisionLanguageModel`.
    """

    def __init__(self, model):
        self.model = model
        self.programs = Programs(model)
        self.statistics = GenerationStatistics(self.programs)

    @property
    def known_ids(self) -> int | None:
        """How many ids the tokenizer has, if the model has more: tables are often padded."""
        processor, rows = self.model.processor, self.model.vocab_size
        if processor is None or processor.tokenizer.vocab_size >= rows:
            return None
        return processor.tokenizer.vocab_size

    def encode(self, images: np.ndarray):
        """Return float[N, T, D] for float32[N, H, W, 3]."""
        number = len(images)
        padded = pad_to(np.asarray(images, "float32"), bucket(number), 0)
        encoded = self.programs.encode(padded)
        return encoded if len(padded) == number else encoded[:number]

    def vision_embeds(self, inputs: dict):
        """Return float[B, I, T, D] of the images of a batch, or None."""
        if inputs.get("vision_embeds") is not None:
            return inputs["vision_embeds"]
        images = inputs.get("images")
        if images is None or 0 in images.shape:
            return None
        if len(images.shape) == 4:
            images = images[:, None]
        flat = np.reshape(keras.ops.convert_to_numpy(images), (-1, *images.shape[2:]))
        embeds = self.encode(flat)
        return keras.ops.reshape(embeds, (*images.shape[:2], *embeds.shape[1:]))

    def read(
        self,
        inputs: dict,
        new_tokens: int,
        pad_id: int,
        earlier: Sequence["CacheState"] = (),
        rows: int | None = None,
    ) -> "Reading":
        """Read prompts into a cache.

        Args:
            inputs: A checked batch: see `VisionLanguageModel`.
            new_tokens: How many tokens per row will follow.
            pad_id: The id of padding.
            earlier: For each row a cache to go on with, which holds what comes before its prompt;
                of a single row it is used up. Their contexts are of the same sizes. Empty: nothing
                comes before.
            rows: How many rows the arrays get; None: the bucket of the prompts.
        """
        began = time.perf_counter()
        limit = self.model.language_decoder.max_positions
        used = max((state.used for state in earlier), default=0)
        inputs, slots = self._bucketed(inputs, limit - used - new_tokens, pad_id, rows)
        room = bucket(used + slots + bucket(new_tokens, TOKEN_BUCKET), TOKEN_BUCKET)
        mask = np.ones((len(inputs["text_tokens"]), min(room, limit)), bool)
        begun = self._joined(earlier, used, mask) if earlier else CacheState([], mask, 0)
        logits, cache, mask = self.programs.prefill(inputs, begun.cache, begun.mask, np.int32(used))
        return Reading(inputs, logits, cache, mask, used + slots, began)

    def start(
        self, inputs: dict, request: Request, earlier: Sequence["CacheState"] = ()
    ) -> "Decoding":
        """Read prompts, as `read` does, and choose every row's first token."""
        rows = len(inputs["text_tokens"])
        reading = self.read(inputs, request.max_new_tokens, request.pad_id, earlier)
        return Decoding(self, rows, request, reading)

    def _joined(self, earlier, used, mask):
        """Return caches as rows of one of at least the mask's slots, of which `used` are used."""
        rows, slots = mask.shape[0], max(mask.shape[1], *(state.slots for state in earlier))
        mask = pad_to(mask, slots, 1, True)
        mask[:, :used] = False
        for row, state in zip(mask, earlier, strict=False):
            row[: state.used] = state.mask[0, : state.used]
        first, *others = ({"cache": state.cache, "mask": state.mask} for state in earlier)
        if first["mask"].shape != mask.shape:
            first = self.programs.arranged(first, np.zeros(rows, "int32"), slots)
        for place, other in enumerate(others, 1):
            first = self.programs.put_rows(first, other, np.array([place], "int32"))
        return CacheState(first["cache"], mask, used)

    def _bucketed(self, inputs, most_slots, pad_id, rows):
        """Return the inputs of `programs.prefill`, rows ending in the same slot, and the slots."""
        tokens = np.asarray(inputs["text_tokens"])
        mask = inputs.get("attention_mask")
        mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
        embeds, counts = self.vision_embeds(inputs), inputs.get("num_images")
        prefix = 0
        if embeds is not None:
            images = embeds.shape[1]
            counts = np.full(len(tokens), images) if counts is None else np.asarray(counts)
            if self.model.fusion == "prefix":
                prefix = images * embeds.shape[2]
        longest = max(1, int(mask.sum(axis=1).max()))
        length = min(bucket(longest, TOKEN_BUCKET), most_slots - prefix)
        batch = rows or bucket(len(tokens))

        def padded_with(value, x):
            x = _left_padded(x, mask, value)[:, -longest:]
            return pad_to(pad_to(x, length, 1, value, before=True), batch, 0, value)

        padded = {
            "text_tokens": padded_with(pad_id, tokens.astype("int32")),
            "attention_mask": padded_with(False, mask),
        }
        if inputs.get("image_tags") is not None:
            padded["image_tags"] = padded_with(0, np.asarray(inputs["image_tags"], "int32"))
        if embeds is not None:
            extra = [(0, batch - len(tokens)), (0, _image_room(self.model, images) - images)]
            if extra != [(0, 0), (0, 0)]:
                embeds = keras.ops.pad(embeds, [*extra, (0, 0), (0, 0)])
            padded["vision_embeds"] = embeds
            padded["num_images"] = pad_to(counts.astype("int32"), batch, 0)
        return padded, prefix + length


@dataclass
class CacheState:
    """A cache, part of which is used.

    Attributes:
        cache: Of `slots` slots; empty if there is none yet.
        mask: bool[B, slots]; True for what may be seen, and from `used` on.
        used: The first free slot.
    """

    cache: Any
    mask: Any
    used: int

    @property
    def slots(self) -> int:
        """How many slots the cache has."""
        return self.mask.shape[1]


@dataclass
class Reading:
    """Prompts in a cache.

    Attributes:
        inputs: What was read, in buckets.
        logits: float32[B, V], of each prompt's last token.
        cache, mask: See `CacheState`.
        start: The slot of the first new token.
        began: When reading began (`time.perf_counter`).
    """

    inputs: dict
    logits: Any
    cache: Any
    mask: Any
    start: int
    began: float

    def held(self, vocab_size: int) -> np.ndarray:
        """Return bool[B, V]: the ids that each prompt holds."""
        tokens = self.inputs["text_tokens"]
        held = np.zeros((len(tokens), vocab_size), bool)
        rows, columns = np.nonzero(self.inputs["attention_mask"])
        held[rows, tokens[rows, columns]] = True
        return held


class Decoding:
    """Prompts that were read, and the new tokens so far.

    Attributes:
        done: How many new tokens every row has.
        start: The slot of the first of them.
        request: What is done.
    """

    def __init__(self, engine, rows, request, reading):
        self._engine = engine
        self._rows = rows
        self.start = reading.start
        self.request = request
        sampler, batch = request.sampler, len(reading.inputs["text_tokens"])
        room = bucket(request.max_new_tokens, TOKEN_BUCKET)
        self._choice = Choice(
            sampler.is_greedy, sampler.penalises, request.processors, known_ids=engine.known_ids
        )
        seeds = pad_to(np.asarray(request.seeds), batch, 0)
        self._options = {
            "settings": sampler.settings(),
            "stop_ids": pad_to(
                np.array(request.stop_ids, "int32"), bucket(len(request.stop_ids) or 1, 4), 0, -1
            ),
            "pad_id": np.int32(request.pad_id),
        }
        if not sampler.is_greedy:
            self._options["uniform"] = uniform_numbers(seeds, room)
        state = {
            "ended": np.arange(batch) >= rows,
            "ids": np.full((batch, room), request.pad_id, "int32"),
            "logprobs": np.zeros((batch, room), "float32"),
        }
        if sampler.penalises:
            state["held"] = reading.held(engine.model.vocab_size)
            state["held"][:, list(request.known)] = True
        state = engine.programs.choose(
            reading.logits, state, np.int32(0), self._options, self._choice
        )
        keras.ops.convert_to_numpy(state["token"])  # The first token is there from here on.
        self._state = {**state, "cache": reading.cache, "mask": reading.mask}
        self.done = 1
        engine.statistics.add_prefill(reading.inputs["attention_mask"][:rows].sum(), reading.began)

    def advance(self, limit: int) -> None:
        """Choose new tokens until each row has `limit` of them, or all have ended."""
        limit = min(limit, self.request.max_new_tokens)
        if self.done >= limit:
            return
        began, before = time.perf_counter(), self.done
        done, self._state = self._engine.programs.decode(
            self._state,
            np.int32(self.done),
            np.int32(limit),
            np.int32(self.start),
            self._options,
            self._choice,
        )
        self.done = int(done)
        self._engine.statistics.add_decode((self.done - before) * self._rows, began)

    def end(self, rows: np.ndarray) -> None:
        """End rows (bool[B]) that were stopped from outside."""
        ended = np.array(keras.ops.convert_to_numpy(self._state["ended"]))
        ended[: self._rows] |= rows
        self._state["ended"] = keras.ops.convert_to_tensor(ended)

    @property
    def ended(self) -> np.ndarray:
        """bool[B]: which rows have ended, by a stop id or by the number of tokens."""
        ended = keras.ops.convert_to_numpy(self._state["ended"])[: self._rows]
        return ended | (self.done >= self.request.max_new_tokens)

    def ids(self) -> np.ndarray:
        """Return int32[B, max_new_tokens], padded after each row's end."""
        return self._result("ids")

    def logprobs(self) -> np.ndarray:
        """Return float32[B, max_new_tokens]: the model's, before any sampler; 0 after the end."""
        return self._result("logprobs")

    def take_cache(self):
        """Return the cache, which holds the new tokens but the last; nothing can follow then."""
        return self._state.pop("cache")

    def _result(self, name):
        values = keras.ops.convert_to_numpy(self._state[name])
        return np.array(values[: self._rows, : self.request.max_new_tokens])


def _left_padded(x, mask, value):
    """Move every row's padding to the left, so that all rows end in the same slot."""
    order = np.argsort(mask, axis=1, kind="stable")
    x = np.take_along_axis(x, order, axis=1)
    return np.where(np.take_along_axis(mask, order, axis=1), x, value).astype(x.dtype)


def _image_room(model, images):
    # Images before the text take slots, so that there their number is not rounded up.
    return images if model.fusion == "prefix" else bucket(images)
