"""Which axis of which weight is split over devices: one table over the paths of variables."""

import dataclasses
import re
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class LayoutRule:
    """How tensor-parallel layouts split the weights that a pattern names.

    Attributes:
        pattern: Regular expression over the last whole parts of a path: "q_proj/kernel" covers
            "language_decoder/block_0/attention/q_proj/kernel".
        axes: Axes to try in this order; none: every device holds the whole weight.
        heads: The attribute of the attention layer that counts the heads along the axis
            ("num_heads", "num_kv_heads"), which are never cut. None: there are no heads.
    """

    pattern: str
    axes: tuple[int, ...]
    heads: str | None = None

    def matches(self, path: str) -> bool:
        """Tell whether the rule is about this path."""
        return re.search(rf"(?:^|/)(?:{self.pattern})$", path) is not None


# Kernels are [inputs, outputs]. Of two matrices in a row, the first is split by outputs and the
# second by inputs, so that what lies between them (heads, hidden units) never leaves its device.
TENSOR_RULES = (
    LayoutRule("q_proj/kernel", (1,), "num_heads"),
    LayoutRule("(k_proj|v_proj)/kernel", (1,), "num_kv_heads"),
    LayoutRule("o_proj/kernel", (0,), "num_heads"),
    LayoutRule("(fc[13579]|gate_proj|up_proj)/kernel", (1,)),
    LayoutRule("(fc[2468]|down_proj)/kernel", (0,)),
    LayoutRule("modality_projection/proj/kernel", (0,)),
    LayoutRule("token_embedding/embeddings", (0, 1)),
    LayoutRule("token_embedding/reverse_embeddings", (1, 0)),
    # Small, and needed whole by every device.
    LayoutRule("patch_projection/kernel|position_embedding|queries|lora_kernel_[ab]", ()),
)


def rule_for(path: str, rules: Iterable[LayoutRule]) -> LayoutRule | None:
    """Return the first rule about a path, or None."""
    return next((rule for rule in rules if rule.matches(path)), None)


def dividing_axis(
    shape: Sequence[int], axes: Iterable[int], parts: int, heads: int | None = None
) -> int | None:
    """Return the first of the axes that divides into equal parts, or None.

    Args:
        shape: Shape of the weight.
        axes: Axes in the order of preference.
        parts: Number of devices that share the weight.
        heads: Number of heads along the axis, which are not cut; None: any cut will do.
    """
    for axis in axes:
        if shape[axis] % parts == 0 and (heads is None or heads % parts == 0):
            return axis
    return None


def largest_axes_first(shape: Sequence[int]) -> list[int]:
    """Return the axes from the largest to the smallest; of equal ones, the first first."""
    return sorted(range(len(shape)), key=lambda axis: -shape[axis])
