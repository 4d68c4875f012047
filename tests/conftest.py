"""What every test shares: quiet libraries, seeds, a compilation cache, the real data's folder.

The backend is the caller's choice: `KERAS_BACKEND=jax pytest`.
"""

import gc
import os
import pathlib

# Before the first import of a backend: no log lines, no reservation of a whole GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs of tiny models run a few times: to compile them well takes longer than to run them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)

import keras
import pytest
from browser import CHROMIUM

DATA_VARIABLE = "DL_TECHNIQUES_DATA"


# Backends hold millions of objects, through which each full collection walks; tracing causes many.
gc.set_threshold(10_000, 10, 10)


def pytest_configure():
    """Draw the same examples each time, without a time limit: machines are slow and shared."""
    from hypothesis import settings

    settings.register_profile("same", deadline=None, derandomize=True, database=None)
    settings.load_profile("same")


def pytest_collection_finish():
    """Leave what was imported out of all later collections."""
    gc.freeze()


def _prepare_jax():
    import jax

    cache = pathlib.Path(__file__).parents[1] / ".jax_cache"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Accelerators multiply in less than float32 by default.
    jax.config.update("jax_default_matmul_precision", "highest")


def _prepare_torch():
    import torch

    # Tiny tensors gain nothing from threads, which wait for each other where cores are shared.
    torch.set_num_threads(1)


if keras.backend.backend() == "jax":
    _prepare_jax()
elif keras.backend.backend() == "torch":
    _prepare_torch()


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
    """Return the folder of the real data; only for tests marked `data`."""
    return pathlib.Path(os.environ[DATA_VARIABLE])


@pytest.fixture
def command(monkeypatch, capfd):
    """The command line: arguments -> (exit code, stdout, stderr)."""
    from dl_techniques import cli

    monkeypatch.setattr("logging.basicConfig", lambda **kwargs: None)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["dl-techniques", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call


def pytest_collection_modifyitems(config, items):
    """Leave out tests marked `data` where no data is named, and `browser` where there is none."""
    has = {"data": os.environ.get(DATA_VARIABLE), "browser": CHROMIUM}
    missing = [name for name, found in has.items() if not found]
    left_out = [i for i in items if any(i.get_closest_marker(name) for name in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
