"""Checks of what `generate` and `score` are given."""

from collections.abc import Iterable

import numpy as np

from dl_techniques.generation.beam_search import BeamSearch
from dl_techniques.generation.sampling import SAMPLERS, Sampler


class TooLongError(ValueError):
    """Prompts and the tokens that may follow have more positions than the model."""


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


def check_length(model, positions: int, new_tokens: int, name: str) -> None:
    """Check that prompts leave room.

    Raises:
        ValueError: if `new_tokens` is no number.
        TooLongError: if there is no room for so many.
    """
    if not isinstance(new_tokens, int | np.integer) or new_tokens < 1:
        raise ValueError(f"{name}={new_tokens!r} must be an int of at least 1.")
    limit = model.language_decoder.max_positions
    if positions + new_tokens > limit:
        raise TooLongError(
            f"{positions} prompt positions + {name}={new_tokens} are more than "
            f"max_positions={limit}: shorten the prompts or ask for fewer tokens."
        )


def check_pad(model, pad_token_id):
    """Raise ValueError if an id cannot be padding."""
    if not 0 <= pad_token_id < model.vocab_size or pad_token_id == model.image_token_id:
        raise ValueError(
            f"pad_token_id={pad_token_id} must lie in [0, vocab_size={model.vocab_size}) and not "
            f"be the image placeholder {model.image_token_id}."
        )


def checked_stop_ids(model, stop_ids) -> tuple[int, ...]:
    """Return the stop ids; ValueError if they are none."""
    ids = np.asarray(list(stop_ids) if isinstance(stop_ids, Iterable) else stop_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"stop_ids={stop_ids!r} must be a list of ids.")
    wrong = [int(i) for i in ids if not 0 <= i < model.vocab_size]
    if wrong:
        raise ValueError(f"stop_ids {wrong} are outside [0, vocab_size={model.vocab_size}).")
    return tuple(int(i) for i in ids)


def checked_stop_strings(strings) -> tuple[str, ...]:
    """Return the stop strings; ValueError if they are none."""
    good = isinstance(strings, list | tuple) and all(isinstance(s, str) and s for s in strings)
    if not good:
        raise ValueError(f"stop_strings={strings!r} must be a list of texts, none empty.")
    return tuple(strings)


def checked_processors(processors) -> tuple:
    """Return the logits processors; ValueError if they are none."""
    if not isinstance(processors, list | tuple) or not all(map(callable, processors)):
        raise ValueError(f"logits_processors={processors!r} must be a list of functions.")
    return tuple(processors)
