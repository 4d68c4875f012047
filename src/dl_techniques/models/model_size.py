"""How large a model is, part by part."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable

import keras

COMPONENTS = ("vision_encoder", "modality_projection", "language_decoder")


@dataclasses.dataclass(frozen=True)
class ComponentSize:
    """One row of a `ModelSize`.

    Attributes:
        name: A component, or "total".
        parameters: Number of weights; a tied head counts once.
        share: Part of the total, in [0, 1].
    """

    name: str
    parameters: int
    share: float

    @property
    def bytes_float32(self) -> int:
        """Bytes of the weights in float32."""
        return 4 * self.parameters

    @property
    def bytes_bfloat16(self) -> int:
        """Bytes of the weights in bfloat16."""
        return 2 * self.parameters


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The sizes of a model's components and of the whole; `str()` gives a table.

    Attributes:
        rows: The components in the order of the data's way through them, then the total.
    """

    rows: tuple[ComponentSize, ...]

    def __getitem__(self, name: str) -> ComponentSize:
        """Return the row of a component or of "total"."""
        return {row.name: row for row in self.rows}[name]

    def __str__(self) -> str:
        lines = [
            f"{'component':<20}{'parameters':>14}{'share':>9}{'float32 MB':>12}{'bfloat16 MB':>13}"
        ]
        for row in self.rows:
            lines.append(
                f"{row.name:<20}{row.parameters:>14,}{row.share:>9.2%}"
                f"{row.bytes_float32 / 1e6:>12,.1f}{row.bytes_bfloat16 / 1e6:>13,.1f}"
            )
        return "\n".join(lines)


def analyze_model_size(model=None) -> ModelSize:
    """Return the size of a model, per component: parameters, share, bytes in float32 and bfloat16.

    Args:
        model: A `VisionLanguageModel`, or a name in `MODEL_NAMES` (`models.families`), whose
            weights are then not allocated. Default: "nanovlm_222m".

    Raises:
        ValueError: if the name is unknown.
    """
    if model is None or isinstance(model, str):
        # nano_vlm offers this function under its own name, so it cannot be imported above.
        from dl_techniques.models.families import create_model

        name = model or "nanovlm_222m"
        model = without_weights(lambda: create_model(name))
    counts = {
        name: sum(math.prod(v.shape) for v in getattr(model, name).weights) for name in COMPONENTS
    }
    total = sum(math.prod(v.shape) for v in model.weights)
    rows = [ComponentSize(name, count, count / total) for name, count in counts.items()]
    return ModelSize((*rows, ComponentSize("total", total, 1.0)))


def without_weights(create: Callable[[], keras.Model]) -> keras.Model:
    """Return the model that `create` makes, built but for the values of its weights.

    Its weights have paths, shapes and dtypes; it cannot be called.
    """

    def deferred():
        with keras.StatelessScope(initialize_variables=False):
            return create()

    # Keras remembers deferred weights per thread and fills them in when a later scope ends; this
    # thread's memory ends with it.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(deferred).result()
