"""Which weights of a model are trained: by patterns over their paths."""

import re
from collections.abc import Collection, Mapping

import keras

from dl_techniques.optimization.component_map import component_pattern

_BLOCK = re.compile(r"(?:^|.*/)block_(\d+)(?=/)")


def last_blocks(model: keras.Model, pattern: str, count: int) -> str:
    """Return the pattern of the last blocks of what a pattern covers.

    Args:
        model: A built model.
        pattern: See `ComponentOptimizer`.
        count: How many blocks, at most those that there are.

    Raises:
        ValueError: the pattern covers fewer blocks, or blocks of several parts.
    """
    compiled = component_pattern(pattern)
    numbers: dict[str, int] = {}
    for variable in model.weights:
        found = _BLOCK.match(variable.path)
        if found and compiled.search(variable.path):
            numbers[found[0]] = int(found[1])
    parents = {path.rpartition("/")[0] for path in numbers}
    if len(parents) > 1 or not 1 <= count <= len(numbers):
        raise ValueError(
            f"The last {count} blocks of {pattern!r}: it covers {len(numbers)} blocks in "
            f"{sorted(parents)}. Name one part that has at least so many."
        )
    (parent,) = parents
    chosen = "|".join(map(str, sorted(numbers.values())[-count:]))
    return f"{re.escape(parent)}/block_(?:{chosen})" if parent else f"block_(?:{chosen})"


def train_only(model: keras.Model, patterns: Collection[str]) -> None:
    """Train the weights that match one of these patterns, and freeze all others.

    Frozen weights get no gradient and no optimizer state. Compile the model anew afterwards.

    Args:
        model: A built model.
        patterns: See `ComponentOptimizer`.

    Raises:
        ValueError: a pattern matches no weight, or a weight two patterns. Nothing is changed then.
    """
    compiled = {pattern: component_pattern(pattern) for pattern in patterns}
    matching: Mapping[str, list[str]] = {
        v.path: [p for p, c in compiled.items() if c.search(v.path)] for v in model.weights
    }
    unused = sorted(set(compiled) - {p for found in matching.values() for p in found})
    twice = [path for path, found in matching.items() if len(found) > 1]
    if unused or twice:
        some = ", ".join(list(matching)[:3])
        raise ValueError(
            f"Patterns {unused} match no weight (paths look like {some}), and {len(twice)} weights "
            f"match several: {[(path, matching[path]) for path in twice[:3]]}."
        )
    model.trainable = True
    for variable in model.weights:
        variable.trainable = bool(matching[variable.path])
