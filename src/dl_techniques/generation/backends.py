"""Compiling the programs of generation: the only place where the backends differ."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import optree

from dl_techniques.generation import programs, row_programs
from dl_techniques.generation.programs import Choice


class Programs:
    """The programs of one model, compiled for the backend in use at their first call.

    Every call sees the model's weights as they are then, unless they are held. Arguments are
    arrays; those named "used up" must not be used again.

    Args:
        model: A `VisionLanguageModel`.

    Attributes:
        compilations: How many combinations of shapes and choices were compiled.
    """

    def __init__(self, model):
        self._model = model
        self._compile = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[
            keras.backend.backend()
        ]
        self._compiled: dict[Any, Callable] = {}
        self._signatures: set = set()
        self._traced_tensors: list[int] = []
        self._held: list | None = None

    @property
    def compilations(self) -> int:
        """How many combinations of shapes and choices were compiled."""
        return len(self._signatures)

    @property
    def run_beside(self) -> bool:
        """Whether programs go on beside the caller, who waits only when the arrays are read."""
        return keras.backend.backend() == "jax"

    def hold_weights(self, held: bool = True) -> None:
        """Promise that the weights stay as they are, or take the promise back.

        To collect them anew in every call takes as long as a step of a small model.
        """
        self._held = [v.value for v in self._model.variables] if held else None

    def _weights(self) -> list:
        return [v.value for v in self._model.variables] if self._held is None else self._held

    def encode(self, images):
        """See `programs.encode`."""
        return self._call(programs.encode, {}, (), images)

    def prefill(self, inputs, cache, mask, start):
        """See `programs.prefill`; cache and mask are used up."""
        return self._call(programs.prefill, {}, (1, 2), inputs, cache, mask, start)

    def choose(self, logits, state, i, options, choice: Choice):
        """See `programs.choose`."""
        return self._call(programs.choose, {"choice": choice}, (), logits, state, i, options)

    def advance(self, tokens, cache, mask, slot):
        """See `programs.advance`; cache is used up."""
        return self._call(programs.advance, {}, (1,), tokens, cache, mask, slot)

    def score(self, logits, ids, cache, mask, start, known_ids: int | None):
        """See `programs.score`."""
        static = {"known_ids": known_ids}
        return self._call(programs.score, static, (), logits, ids, cache, mask, start)

    def decode(self, state, i, limit, start, options, choice: Choice):
        """See `programs.decode`; state is used up."""
        static = {"choice": choice}
        return self._call(programs.decode, static, (0,), state, i, limit, start, options)

    def put_rows(self, state, rows, places):
        """See `row_programs.put_rows`; state is used up."""
        return self._call(row_programs.put_rows, {}, (0,), state, rows, places, with_model=False)

    def arranged(self, state, order, slots: int):
        """See `row_programs.arranged`."""
        static = {"slots": slots}
        return self._call(row_programs.arranged, static, (), state, order, with_model=False)

    def taken_row(self, cache, row, slots: int):
        """See `row_programs.taken_row`."""
        static = {"slots": slots}
        return self._call(row_programs.taken_row, static, (), cache, row, with_model=False)

    def run(self, program: Callable, *args):
        """Call another function of the model and of arrays; nothing is used up."""
        return self._call(program, {}, (), *args)

    def _call(self, program, static: dict, used_up: tuple[int, ...], *args, with_model=True):
        """Call a function, of the model too, with `static` arguments compiled in.

        The arrays whose places `used_up` names are used up.
        """
        signature = (program.__name__, *static.items(), _shapes(args))
        self._signatures.add(signature)
        key = signature[:-1]
        if keras.backend.backend() == "torch":
            # A trace is for one set of shapes, and of the tensors that hold the weights.
            tensors = list(map(id, self._weights()))
            if tensors != self._traced_tensors:
                self._traced_tensors = tensors
                self._compiled.clear()
            key = signature
        compiled = self._compiled.get(key)  # Another thread may clear the rest meanwhile.
        if compiled is None:
            function = partial(program, *((self._model,) if with_model else ()), **static)
            weights = self._weights if with_model else list
            variables = (lambda: self._model.variables) if with_model else list
            compiled = self._compile(function, used_up, variables, weights)
            self._compiled[key] = compiled
        return compiled(*args)


def _shapes(args):
    leaves, structure = optree.tree_flatten(args)
    return structure, *((tuple(x.shape), _name_of_type(x.dtype)) for x in leaves)


_name_of_type = functools.cache(keras.backend.standardize_dtype)


def _jax(function, used_up, variables, weights):
    """The weights are arguments, so that later training is seen."""
    import jax

    from dl_techniques.generation.jax_products import split_products

    if function.func is programs.decode:
        function = partial(function, transform=split_products)

    @partial(jax.jit, donate_argnums=tuple(k + 1 for k in used_up))
    def pure(values, *args):
        with keras.StatelessScope(state_mapping=list(zip(variables(), values, strict=True))):
            return function(*args)

    return lambda *args: pure(weights(), *args)


def _tensorflow(function, used_up, variables, weights):
    """XLA makes decoding twice as fast on a CPU; elsewhere it costs its compilation only."""
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=function.func is programs.decode)
    return lambda *args: compiled(*keras.tree.map_structure(tf.convert_to_tensor, args))


def _torch(function, used_up, variables, weights):
    """Only the step of a decoding loop is worth a trace."""
    import torch

    from dl_techniques.generation.torch_tracing import trace

    def call(*args):
        with torch.no_grad():
            return function(*keras.tree.map_structure(keras.ops.convert_to_tensor, args))

    if function.func is not programs.decode:
        return call
    step = partial(programs.step, *function.args, **function.keywords)
    traced = None

    def decode(state, i, limit, start, options):
        nonlocal traced
        state, start, options = keras.tree.map_structure(
            keras.ops.convert_to_tensor, (state, start, options)
        )
        state = dict(sorted(state.items()))  # A trace takes the entries in one order.
        with torch.no_grad():
            for k in range(int(i), int(limit)):
                if state["ended"].all():
                    return k, state
                place = torch.tensor(k, dtype=torch.int32, device=start.device)
                if traced is None:
                    traced = trace(step, state, place, start, options)
                state = traced(state, place, start, options)
        return limit, state

    return decode
