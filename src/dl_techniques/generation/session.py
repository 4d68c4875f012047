"""Session: one conversation whose cache is kept, so that a turn reads only what is new."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import keras
import numpy as np

from dl_techniques.generation.buckets import bucket
from dl_techniques.generation.engine import TOKEN_BUCKET, CacheState
from dl_techniques.generation.prompts import Prompt

Span = tuple[int, int, str]


@dataclass(frozen=True)
class Turn:
    """One prompt of a conversation on its way.

    Attributes:
        prompt: The whole conversation so far.
        spans: The places of each image's first and last mark, with the image's digest.
        slots: Of the cache, for the tokens that are not read again.
        earlier: The cache that holds these, or None.
    """

    prompt: Prompt
    spans: list[Span]
    slots: list[int]
    earlier: CacheState | None

    @property
    def known(self) -> list[int]:
        """The ids that are not read again."""
        return self.prompt.ids[: len(self.slots)]

    @property
    def part(self) -> Prompt:
        """The rest of the prompt, which is to be read."""
        kept = len(self.slots)
        rest = [k for k, (start, _, _) in enumerate(self.spans) if start >= kept]
        return Prompt(
            self.prompt.ids[kept:],
            [self.prompt.images[k] for k in rest],
            [self.prompt.digests[k] for k in rest],
            [self.prompt.tiles[k] for k in rest],
        )


class Session:
    """Keeps the cache of a conversation between calls of `generate(..., session=...)`.

    Of the next prompt, the longest beginning that the cache holds is not read again; an image is
    held whole or not at all. Where images are read by cross-attention, a prompt whose images are
    not those of the last one is read anew. A session belongs to the model and the weights that
    first used it.

    Attributes:
        reused: How many tokens of the last prompt were not read again.
        nbytes: Size of what is kept, in bytes.
    """

    def __init__(self):
        self.reused = 0
        self._model = None
        self.clear()

    def clear(self) -> None:
        """Forget the conversation."""
        self._ids: list[int] = []
        self._slots: list[int] = []
        self._spans: list[Span] = []
        self._cache = None
        self.nbytes = 0

    @property
    def known(self) -> int:
        """How many tokens are kept."""
        return len(self._ids)

    def may_share_half(self, ids: list[int], spans: list[Span]) -> bool:
        """Return False if a prompt cannot share half of it: one look, as there may be thousands.

        Args:
            ids: Those of a whole conversation.
            spans: Its `image_spans`.
        """
        half = (len(self._ids) + 1) // 2
        if not 0 < half < len(ids) or self._ids[half - 1] != ids[half - 1]:
            return False
        # All images have the same placeholders.
        own = self._spans
        return not (own and spans and own[0][0] < half and own[0][2] != spans[0][2])

    def shared(self, model, prompt: Prompt, spans: list[Span]) -> int:
        """Return how many tokens of a prompt need not be read, if this session takes it next.

        Args:
            model: Who will read it.
            prompt: A whole conversation.
            spans: Its `image_spans`.
        """
        if self._model is not model:
            return 0
        return self._shared(prompt, spans, _crosses(model))

    def begin(self, model, prompt: Prompt, max_new_tokens: int) -> Turn:
        """Return the next turn, to which the cache passes until it is finished.

        Raises:
            ValueError: for another model than before, or one for which `has_sessions` is False.
        """
        if self._model not in (None, model):
            raise ValueError("A session cannot change its model: make a new Session.")
        spans = image_spans(model, prompt)
        self._model = model
        kept = self._shared(prompt, spans, _crosses(model))
        used = self._slots[kept - 1] + 1 if kept else 0
        chunk = bucket(len(prompt.ids) - kept, TOKEN_BUCKET)
        if kept and used + chunk + max_new_tokens > model.language_decoder.max_positions:
            kept = 0  # The gaps between the turns do not fit any more.
        self.reused = kept
        turn = Turn(prompt, spans, self._slots[:kept], self._earlier(kept, used))
        # A turn that is never finished leaves nothing behind.
        self.clear()
        return turn

    def finish(self, turn: Turn, cache, start: int, new_ids: Sequence[int]) -> None:
        """Keep a cache.

        Args:
            turn: What `begin` returned.
            cache: Holds the prompt up to slot `start`, then the new ids.
            start: The first new id's slot.
            new_ids: The new ids that went through the model.
        """
        read = len(turn.prompt.ids) - len(turn.slots)
        self._spans = turn.spans
        self._ids = turn.prompt.ids + [int(i) for i in new_ids]
        self._slots = turn.slots + list(range(start - read, start + len(new_ids)))
        self._cache = cache
        self.nbytes = sum(_bytes_of(x) for block in cache for x in block)

    def _shared(self, prompt, spans, crosses) -> int:
        """Return how many tokens of the prompt the cache holds."""
        most = min(len(self._ids), len(prompt.ids) - 1)
        pairs = zip(self._spans, spans, strict=False)
        others = [start for (_, _, old), (start, _, new) in pairs if old != new]
        kept = _common_length(self._ids, prompt.ids, min([most, *others]))
        for start, last, _ in spans:
            if start < kept <= last:
                kept = start
        # What the kept tokens saw by cross-attention is all that the new ones will see.
        if crosses and (self._spans != spans or any(start >= kept for start, _, _ in spans)):
            return 0
        return kept

    def _earlier(self, kept, used) -> CacheState | None:
        """Return the cache, of which the first tokens are kept; None if nothing of it is."""
        if not kept:
            return None
        mask = np.ones((1, self._cache[0][0].shape[1]), bool)
        mask[0, :used] = False
        mask[0, self._slots[:kept]] = True
        return CacheState(self._cache, mask, used)


def has_sessions(model) -> bool:
    """Tell whether conversations with a model can be kept: each image has marks in the text."""
    return (model.tile_tag_ids if _crosses(model) else model.image_token_id) is not None


def _crosses(model):
    return model.language_decoder.cross_attention_every is not None


def image_spans(model, prompt: Prompt) -> list[Span]:
    """Return the places of each image's first and last mark, with the image's digest.

    Marks are placeholders, or tags of tiles, with the placeholders right behind them.

    Raises:
        ValueError: for a model for which `has_sessions` is False.
    """
    if not has_sessions(model):
        raise ValueError(
            "A session needs a model whose images have placeholders or tile_tag_ids in the text."
        )
    if not prompt.images:
        return []
    crosses = _crosses(model)
    marks, each = {model.image_token_id}, model.tokens_per_image
    if crosses:
        marks, each = set(model.tile_tag_ids), 1
    places = [place for place, token in enumerate(prompt.ids) if token in marks]
    ends = list(accumulate(each * count for count in prompt.tiles))
    spans = []
    for start, end, digest in zip([0, *ends[:-1]], ends, prompt.digests, strict=False):
        last = places[end - 1]
        if crosses and prompt.ids[last + 1 : last + 2] == [model.image_token_id]:
            last += model.tokens_per_image
        spans.append((places[start], last, digest))
    return spans


def _common_length(ids: list[int], others: list[int], most: int) -> int:
    """Return how many of the first `most` ids are the same in both."""
    if ids[:most] == others[:most]:
        return most
    pairs = zip(ids, others, strict=False)
    return next(place for place, (one, other) in enumerate(pairs) if one != other)


def _bytes_of(tensor) -> int:
    return math.prod(tensor.shape) * _bytes_of_type(tensor.dtype)


@functools.cache
def _bytes_of_type(dtype) -> int:
    name = keras.backend.standardize_dtype(dtype)
    return 1 if name == "bool" else int(name.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8
