"""Which blocks of a part are its last ones, as a pattern over the paths of its weights."""

import re

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
