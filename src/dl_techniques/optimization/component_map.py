"""The rule that says which component, and so which optimizer, a variable belongs to."""

import re

import keras

# Stands beside the patterns where figures of all components together are given.
TOTAL = "all"

_SHOWN = 5
# Each of these would act on one component alone, or be lost, without a word.
_OUTER_SETTINGS = ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor")


def component_pattern(pattern: str) -> re.Pattern:
    """Return the pattern compiled to match whole parts of a path, anywhere in it.

    Raises:
        ValueError: the pattern is empty or no regular expression.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"A component pattern must be a non-empty string, got {pattern!r}.")
    try:
        return re.compile(rf"(?:^|/)(?:{pattern})(?=/|$)")
    except re.error as error:
        raise ValueError(
            f"Component pattern {pattern!r} is no regular expression: {error}."
        ) from error


class ComponentMap:
    """Components' patterns and their optimizers; called with a variable, gives its optimizer.

    Args:
        components: pattern -> optimizer, each its own instance.

    Raises:
        ValueError: no components, a bad pattern, or an optimizer that cannot be a component's.
    """

    def __init__(self, components: dict[str, keras.optimizers.Optimizer]):
        if not components:
            raise ValueError("components must hold at least one pattern -> optimizer pair.")
        if TOTAL in components:
            raise ValueError(
                f"{TOTAL!r} names the total in gradient_norms and tables, so it cannot be a "
                f"component pattern: write '({TOTAL})' for a part of that name."
            )
        self._optimizers = dict(components)
        self._patterns = {pattern: component_pattern(pattern) for pattern in components}
        for pattern, optimizer in components.items():
            _check_optimizer(pattern, optimizer)
        if len({id(optimizer) for optimizer in components.values()}) < len(components):
            raise ValueError(
                "Two components share one optimizer instance; give each its own, so that their "
                "learning rates stay separate."
            )

    def items(self):
        """Return (pattern, optimizer) pairs."""
        return self._optimizers.items()

    def values(self):
        """Return the optimizers, in the order of the patterns."""
        return self._optimizers.values()

    def matching(self, path: str) -> list[str]:
        """Return the patterns that match a variable's path."""
        return [p for p, compiled in self._patterns.items() if compiled.search(path)]

    def __call__(self, variable) -> keras.optimizers.Optimizer:
        """Return the optimizer of a variable whose path was among those of `groups`."""
        return self._optimizers[self.matching(variable.path)[0]]

    def groups(self, paths: list[str]) -> dict[str, list[int]]:
        """Return the indices of each pattern's paths: all paths, each once.

        Raises:
            ValueError: naming the first variables or the patterns that break the rule.
        """
        found = {path: self.matching(path) for path in paths}
        patterns = list(self._patterns)
        for path, matches in found.items():
            if len(matches) > 1:
                raise ValueError(
                    f"Variable {path!r} matches several component patterns: {matches}. "
                    "Make them exclude each other."
                )
        unmatched = [path for path, matches in found.items() if not matches]
        if unmatched:
            raise ValueError(
                f"{len(unmatched)} trainable variables match no component pattern of {patterns}: "
                f"{_some(unmatched)}. Add a pattern, or freeze them (trainable=False)."
            )
        used = {match for matches in found.values() for match in matches}
        unused = [pattern for pattern in patterns if pattern not in used]
        if unused:
            raise ValueError(
                f"Component patterns {unused} match no trainable variable (frozen parts have "
                f"none). Patterns match whole parts of paths such as {_some(paths)}."
            )
        return {p: [i for i, path in enumerate(paths) if p in found[path]] for p in patterns}


def _check_optimizer(pattern, optimizer):
    outer = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(optimizer, outer):
        raise ValueError(
            f"Component {pattern!r} needs a plain Keras optimizer (wrap the ComponentOptimizer in "
            f"a LossScaleOptimizer, not its parts), got {type(optimizer).__name__}."
        )
    for setting in _OUTER_SETTINGS:
        if getattr(optimizer, setting) is not None:
            raise ValueError(
                f"The optimizer of component {pattern!r} has {setting}="
                f"{getattr(optimizer, setting)}, which must cover all components together: use "
                "global_clipnorm and accumulation_steps of ComponentOptimizer, and a "
                "LossScaleOptimizer around it."
            )


def _some(paths):
    return ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
