"""Compiling the programs of generation: the only place where the backends differ."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from dl_techniques.generation import programs
from dl_techniques.generation.programs import Choice


class Programs:
    """The programs of one model, compiled for the backend in use at their first call.

    Every call sees the model's weights as they are then. Arguments are arrays; those named
    "used up" must not be used again.

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

    @property
    def compilations(self) -> int:
        """How many combinations of shapes and choices were compiled."""
        return len(self._signatures)

    def encode(self, images):
        """See `programs.encode`."""
        return self._call(programs.encode, None, (), images)

    def prefill(self, inputs, cache, mask, start):
        """See `programs.prefill`; cache and mask are used up."""
        return self._call(programs.prefill, None, (1, 2), inputs, cache, mask, start)

    def choose(self, logits, state, i, options, choice: Choice):
        """See `programs.choose`."""
        return self._call(programs.choose, choice, (), logits, state, i, options)

    def advance(self, tokens, cache, mask, slot):
        """See `programs.advance`; cache is used up."""
        return self._call(programs.advance, None, (1,), tokens, cache, mask, slot)

    def score(self, logits, ids, cache, mask, start):
        """See `programs.score`; cache is used up."""
        return self._call(programs.score, None, (2,), logits, ids, cache, mask, start)

    def decode(self, state, i, limit, start, options, choice: Choice):
        """See `programs.decode`; state is used up."""
        return self._call(programs.decode, choice, (0,), state, i, limit, start, options)

    def _call(self, program, choice, used_up, *args):
        signature = (program.__name__, choice, _shapes(args))
        self._signatures.add(signature)
        # PyTorch traces for one set of shapes; the others keep theirs apart themselves.
        key = signature if keras.backend.backend() == "torch" else signature[:2]
        if key not in self._compiled:
            function = partial(program, self._model)
            if choice is not None:
                function = partial(function, choice=choice)
            self._compiled[key] = self._compile(self._model, function, used_up)
        return self._compiled[key](*args)


def _shapes(args):
    return str(keras.tree.map_structure(lambda x: (tuple(x.shape), str(x.dtype)), args))


def _jax(model, function, used_up):
    """The weights are arguments, so that later training is seen."""
    import jax

    @partial(jax.jit, donate_argnums=tuple(k + 1 for k in used_up))
    def pure(values, *args):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return function(*args)

    return lambda *args: pure([v.value for v in model.variables], *args)


def _tensorflow(model, function, used_up):
    import tensorflow as tf

    compiled = tf.function(function)
    return lambda *args: compiled(*keras.tree.map_structure(tf.convert_to_tensor, args))


def _torch(model, function, used_up):
    import torch

    def call(*args):
        with torch.no_grad():
            return function(*keras.tree.map_structure(keras.ops.convert_to_tensor, args))

    return call
