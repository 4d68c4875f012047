"""What `test_distribution_families.py` runs in a process with eight devices: `FILE`."""

import contextlib
import json
import pathlib
import sys

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

import conftest  # noqa: F401, E402  Quiet libraries, exact products, the compilation cache.
import keras  # noqa: E402
from tiny_families import family_batch, family_model  # noqa: E402

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss  # noqa: E402
from dl_techniques.optimization import optimizer_builder  # noqa: E402
from dl_techniques.training.distribution import make_distribution  # noqa: E402
from dl_techniques.training.local_rows import local_rows  # noqa: E402
from dl_techniques.training.setup import component_optimizer  # noqa: E402

STEPS = 4
LAYOUTS = {"single": 1, "fsdp": 1, "tensor": 2}  # "data" splits no weight: no family differs.


def run(case: str, layout: str) -> dict:
    """Return the losses of some steps, and how the weights lie."""
    distribution = None
    if layout != "single":
        distribution = make_distribution(layout, model_parallel=LAYOUTS[layout])
    with contextlib.nullcontext() if distribution is None else distribution.scope():
        model = family_model(case)
        parts = {
            name: optimizer_builder({"type": "adamw"}, 3e-3)
            for name in ("vision", "projection", "language")
        }
        model.compile(component_optimizer(parts, global_clipnorm=1.0), NanoVLMLoss())
        batches = [family_batch(case, rows=8, seed=step % 2) for step in range(STEPS)]
        losses = [float(model.train_on_batch(*local_rows(batch))) for batch in batches]
        specs = {}
        if distribution is not None:
            specs = {v.path: [*map(str, v.value.sharding.spec)] for v in model.trainable_variables}
    return {"losses": losses, "specs": specs}


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    found = {case: {k: run(case, k) for k in LAYOUTS} for case in ("ghostvis", "nvlm_x")}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
