"""Layer-wise learning-rate decay: the deeper a block lies below the top, the slower it learns."""

import re
from collections.abc import Callable

import keras

from dl_techniques.optimization.component_map import component_pattern

# Names, within a component, of this package's layers before and after the blocks.
BEFORE_BLOCKS = r"patch_embedding|token_embedding/(?!reverse_)\w+|pre_norm"
AFTER_BLOCKS = r"norm|token_embedding/reverse_embeddings"


def layerwise_components(
    paths: list[str],
    component: str,
    learning_rate: float,
    decay: float,
    make_optimizer: Callable[[float], keras.optimizers.Optimizer],
    before: str = BEFORE_BLOCKS,
    after: str = AFTER_BLOCKS,
) -> dict[str, keras.optimizers.Optimizer]:
    """Return entries for `ComponentOptimizer` that give each block of a component its own rate.

    `{component}/block_{i}` learns at learning_rate * decay ** (last - i), where `last` is the
    highest trained block; what lies before the blocks at learning_rate * decay ** (last + 1);
    what lies after them at learning_rate. A table that is input and output at once lies before.
    What is frozen has no path here and gets no entry::

        paths = [v.path for v in model.trainable_variables]
        optimizer = ComponentOptimizer({
            **layerwise_components(paths, "vision_encoder", 1e-4, 0.8, AdamW),
            "modality_projection": AdamW(1e-3),
            "language_decoder": AdamW(1e-4),
        })

    Args:
        paths: paths of the model's trainable variables.
        component: pattern of the part that holds the blocks, as in `ComponentOptimizer`.
        learning_rate: rate of the highest block.
        decay: factor from each block to the one below it, in (0, 1]; 1 gives all the same rate.
        make_optimizer: learning rate -> a new optimizer (with a schedule, say, that peaks there).
        before: pattern of the names, below `component`, of what lies before the blocks.
        after: the same for what lies after them.

    Raises:
        ValueError: no blocks below the component, a variable of it that is in no block and
            matches neither or both of `before` and `after`, or numbers out of range.

    References:
        Bao et al., 2022, https://arxiv.org/abs/2106.08254
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate}.")
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}.")
    own = [path for path in paths if component_pattern(component).search(path)]
    stem = component if re.fullmatch(r"[\w/]+", component) else f"(?:{component})"
    in_block = component_pattern(rf"{stem}/block_(\d+)")
    blocks = sorted({int(m.groups()[-1]) for m in map(in_block.search, own) if m})
    if not blocks:
        shown = own or paths
        raise ValueError(
            f"No trainable variable lies in {component}/block_0, block_1, ...; the component "
            f"pattern must name what directly holds the blocks. Paths are such as {shown[:3]}."
        )
    rates = {f"{stem}/(?:{before})": learning_rate * decay ** (blocks[-1] + 1)}
    rates |= {f"{stem}/block_{i}": learning_rate * decay ** (blocks[-1] - i) for i in blocks}
    rates[f"{stem}/(?:{after})"] = learning_rate
    used = {_only_pattern(path, rates) for path in own}
    return {pattern: make_optimizer(rate) for pattern, rate in rates.items() if pattern in used}


def _only_pattern(path, patterns):
    found = [pattern for pattern in patterns if component_pattern(pattern).search(path)]
    if len(found) != 1:
        raise ValueError(
            f"{path!r} must lie in one block or match one of `before` and `after`; it matches "
            f"{found or 'none'} of {list(patterns)}. Pass before=... or after=... to place it."
        )
    return found[0]
