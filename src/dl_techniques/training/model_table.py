"""One table of all named models: true parameter counts per component, and work per row."""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from dl_techniques.models.families import MODEL_NAMES
from dl_techniques.models.model_size import COMPONENTS, analyze_model_size
from dl_techniques.training.batch_sizes import row_tokens
from dl_techniques.training.flops import model_flops
from dl_techniques.training.skeletons import make_skeleton

# Besides the image a row has a question and its answer of so many tokens together.
TEXT_TOKENS = 128
_UNITS = {"m": 1e6, "b": 1e9}
# Of these names the number has a decimal, which stands behind a "_".
_DECIMALS = {"ghostvis_1_5b": 1.5e9, "ghostvis_0_5b": 0.5e9}
# Rounding makes up for this share of a label.
_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A line of the table; `str()` gives it.

    Attributes:
        name: The configuration's.
        components: Parameters of each of `COMPONENTS`.
        parameters: Parameters of the whole model.
        image_size: Height and width in pixels of the row's one image.
        tokens: Tokens of the row in the decoder, images' included.
        flops: Operations of a training step with the row, all parts trained; see `model_flops`.
    """

    name: str
    components: tuple[int, ...]
    parameters: int
    image_size: tuple[int, int]
    tokens: int
    flops: int

    @property
    def note(self) -> str:
        """What to know of a name that says another size; else nothing."""
        said = labelled_size(self.name)
        if said is None or _is_near(self.parameters, said):
            return ""
        if _is_near(self.components[-1], said):
            return f"{_short(said)} is its decoder alone"
        return f"the name says {_short(said)}, it is {_short(self.parameters)}"

    def __str__(self) -> str:
        counts = "".join(f"{count:>16,}" for count in (*self.components, self.parameters))
        height, width = self.image_size
        line = f"{self.name:<17}{counts}{f'{height}x{width}':>9}{self.tokens:>8,}"
        return f"{line}{self.flops / 1e12:>11.3f}  {self.note}".rstrip()


def table_header() -> str:
    """Return the head of the table."""
    names = "".join(f"{name:>16}" for name in ("vision", "projection", "decoder", "parameters"))
    return f"{'model':<17}{names}{'image':>9}{'tokens':>8}{'TFLOP/row':>11}"


def model_rows(names: Iterable[str] | None = None) -> Iterator[ModelRow]:
    """Yield the rows of named models (default: all), one by one; nothing is allocated.

    Each row has one image of the model's own size and `TEXT_TOKENS` tokens of text.
    """
    for name in MODEL_NAMES if names is None else names:
        model = make_skeleton(name)
        size = analyze_model_size(model)
        length = TEXT_TOKENS + row_tokens(model, 1, model.tokens_per_image)
        shapes = {"text_tokens": (1, length), "images": (1, 1, *model.image_size, 3)}
        prefix = model.tokens_per_image * int(model.fusion == "prefix")
        yield ModelRow(
            name,
            tuple(size[component].parameters for component in COMPONENTS),
            size["total"].parameters,
            model.image_size,
            length + prefix,
            model_flops(model, shapes),
        )


def labelled_size(name: str) -> float | None:
    """Return how many parameters a name says the model has; None if it says nothing."""
    if name in _DECIMALS:
        return _DECIMALS[name]
    found = re.search(r"_(\d+)([mb])(_|$)", name)
    return None if found is None else int(found[1]) * _UNITS[found[2]]


def _is_near(count, said):
    return abs(count - said) <= _TOLERANCE * said


def _short(count):
    return f"{count / 1e9:.3g} B" if count < 1e10 else f"{count / 1e9:.4g} B"
