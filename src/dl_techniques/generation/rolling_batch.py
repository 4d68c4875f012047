"""RollingBatch: rows that decode together, and join and leave between steps.

What vLLM and JetStream call continuous batching: a row is read alone, then put into a batch whose
shapes do not depend on who is in it (https://www.usenix.org/conference/osdi22/presentation/yu).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET, Decoding, Engine, Request
from dl_techniques.generation.programs import Choice
from dl_techniques.generation.sampling import uniform_numbers

# The most steps between looks at who joins and leaves.
STEPS = 4
_KEPT = ("cache", "mask", "token", "held")


@dataclass(eq=False)
class Seat:
    """A row's place in a batch.

    Attributes:
        request: What is done for it.
        start: The slot of its first new token.
        row: Its row; others may take its place once it has left.
        ids, logprobs: Its new tokens so far, the one that ended it included.
        ended: Whether it has ended, by a stop id or by the number of tokens.
    """

    request: Request
    start: int
    row: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self):
        self.settings = self.request.sampler.settings()
        room = bucket(self.request.max_new_tokens, TOKEN_BUCKET) + STEPS
        self.uniform = uniform_numbers(self.request.seeds, room)[0]

    @property
    def remaining(self) -> int:
        """How many tokens may follow."""
        return self.request.max_new_tokens - len(self.ids)

    def push(self, ids, logprobs) -> None:
        """Take new tokens, up to the one that ends the row."""
        for token, logprob in zip(ids, logprobs, strict=True):
            if self.ended:
                return
            self.ids.append(int(token))
            self.logprobs.append(float(logprob))
            self.ended = int(token) in self.request.stop_ids or not self.remaining


class RollingBatch:
    """A batch of one row, or of `rows`; larger or smaller as rows join and leave.

    A row's tokens are those that it gets alone. All shapes are buckets: at most two numbers of
    rows, and the slots of the longest row. Every method must be called from one thread.

    Args:
        engine: Runs the programs.
        rows: The most rows.
    """

    def __init__(self, engine: Engine, rows: int):
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1.")
        self._engine = engine
        self._rows = rows
        self._state: dict[str, Any] = {}
        self.seats: list[Seat] = []

    @property
    def is_full(self) -> bool:
        """Whether no row can join."""
        return len(self.seats) == self._rows

    def join(self, decoding: Decoding) -> Seat:
        """Take in a row that was read and has its first token; the decoding is used up.

        Raises:
            ValueError: for several rows, or if the batch is full.
        """
        if self.is_full:
            raise ValueError(f"All {self._rows} rows are taken.")
        request = decoding.request
        if len(request.seeds) != 1 or request.processors:
            raise ValueError("A row that joins must be alone and have no logits processors.")
        seat = Seat(request, decoding.start, 0)
        seat.push(decoding.ids()[0, :1], decoding.logprobs()[0, :1])
        row = _kept(decoding.take_state())
        if self.seats:
            self._make_room(row)
            seat.row = min(set(range(self._rows)) - {other.row for other in self.seats})
            row = self._engine.programs.put_row(self._state, row, np.int32(seat.row))
        self._state = row
        self.seats.append(seat)
        return seat

    def advance(self) -> None:
        """Choose the next tokens of all rows, up to `STEPS`, and no more than one of them needs."""
        going = [seat for seat in self.seats if not seat.ended]
        if not going:
            return
        batch = self._state["token"].shape[0]
        state = {
            **self._state,
            "ended": np.ones(batch, bool),
            "ids": np.zeros((batch, STEPS), "int32"),
            "logprobs": np.zeros((batch, STEPS), "float32"),
        }
        for seat in going:
            state["ended"][seat.row] = False
        start, options, choice = self._arguments(batch)
        if not choice.penalises:
            state.pop("held", None)
        limit = min(STEPS, *(seat.remaining for seat in going))
        done, state = self._engine.programs.decode(
            state, np.int32(0), np.int32(limit), start, options, choice
        )
        self._state = _kept(state)
        ids, logprobs = (ops.convert_to_numpy(state[name]) for name in ("ids", "logprobs"))
        for seat in going:
            seat.push(ids[seat.row, : int(done)], logprobs[seat.row, : int(done)])

    def leave(self, seat: Seat, keep: bool = False):
        """Let a row go; return its cache, which holds its tokens but the last, if it is kept."""
        self.seats.remove(seat)
        cache = self._row_cache(seat) if keep else None
        if not self.seats:
            self._state = {}
        elif len(self.seats) == 1 and self._state["token"].shape[0] > 1:
            self._arrange([self.seats[0].row], 1, self._state["mask"].shape[1])
        return cache

    def _row_cache(self, seat):
        """Return a copy of a row's cache, as long as it is used."""
        used = bucket(seat.start + len(seat.ids), TOKEN_BUCKET)
        slots = min(used, self._state["mask"].shape[1])

        def of_row(x, length):
            start = (seat.row,) + (0,) * (len(x.shape) - 1)
            return ops.copy(ops.slice(x, start, (1, length, *x.shape[2:])))

        return [
            tuple(of_row(x, slots if i < 2 else x.shape[1]) for i, x in enumerate(block))
            for block in self._state["cache"]
        ]

    def _arguments(self, batch):
        """Return the start int32[batch], the options and the choice of a decoding."""
        most = bucket(max(1, *(len(seat.request.stop_ids) for seat in self.seats)), 4)
        start = np.ones(batch, "int32")
        options = {
            "settings": np.tile(np.array([1, 0, 0, 1, 0], "float32"), (batch, 1)),
            "stop_ids": np.full((batch, most), -1, "int32"),
            "pad_id": np.zeros(batch, "int32"),
        }
        uniform = np.zeros((batch, STEPS), "float32")
        for seat in self.seats:
            done, stop_ids = len(seat.ids), np.array(seat.request.stop_ids, "int32")
            start[seat.row] = seat.start + done
            options["settings"][seat.row] = seat.settings
            options["stop_ids"][seat.row] = pad_to(stop_ids, most, 0, -1)
            options["pad_id"][seat.row] = seat.request.pad_id
            uniform[seat.row] = seat.uniform[done : done + STEPS]
        samplers = [seat.request.sampler for seat in self.seats]
        is_greedy = all(sampler.is_greedy for sampler in samplers)
        if not is_greedy:
            options["uniform"] = uniform
        return start, options, Choice(is_greedy, any(s.penalises for s in samplers))

    def _make_room(self, row):
        """Give the batch all its rows, and at least the slots and whatever else the row has."""
        rows = [seat.row for seat in self.seats]
        slots = max(self._state["mask"].shape[1], row["mask"].shape[1])
        if self._state["mask"].shape[0] == 1 or slots > self._state["mask"].shape[1]:
            self._arrange(rows, self._rows, slots)
        if "held" in row and "held" not in self._state:
            self._state["held"] = np.zeros((self._rows, row["held"].shape[1]), bool)
        cache = zip(self._state["cache"], row["cache"], strict=True)
        self._state["cache"] = [_with_context(block, other) for block, other in cache]

    def _arrange(self, rows, batch, slots):
        """Make a batch of the present rows `rows`, in this order."""
        order = np.array(rows + rows[:1] * (batch - len(rows)), "int32")

        def arranged(x, length=None, value=0):
            x = ops.take(x, order, axis=0)
            if length is None or length == x.shape[1]:
                return x
            widths = [(0, 0)] * len(x.shape)
            widths[1] = (0, length - x.shape[1])
            return ops.pad(x, widths, constant_values=value)

        cache = [
            (*(arranged(x, slots) for x in block[:2]), *map(arranged, block[2:]))
            for block in self._state["cache"]
        ]
        others = {name: arranged(self._state[name]) for name in self._state.keys() & {"held"}}
        self._state = {
            **others,
            "cache": cache,
            "mask": arranged(self._state["mask"], slots, True),
            "token": arranged(self._state["token"]),
        }
        places = {row: place for place, row in enumerate(rows)}
        for seat in self.seats:
            seat.row = places[seat.row]


def _kept(state):
    """Return what of a state stays between steps."""
    return {name: state[name] for name in _KEPT if name in state}


def _with_context(block, other):
    """Return a block of a batch's cache with room for the context in a row's block."""
    if len(other) == 2 or (len(block) > 2 and block[2].shape[1] >= other[2].shape[1]):
        return block
    batch, length = len(block[0]), other[2].shape[1]
    context = block[2:] or tuple(
        ops.zeros((batch, 0, *x.shape[2:]), dtype=x.dtype) for x in other[2:]
    )
    missing = length - context[0].shape[1]
    grown = (ops.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (len(x.shape) - 2)]) for x in context)
    return (*block[:2], *grown)
