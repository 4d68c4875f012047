"""Imports: one backend is enough, and no other is loaded."""

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

BACKENDS = ("jax", "tensorflow", "torch")
# Python's own way to find modules, to which some are not there.
WITHOUT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

ABSENT = {absent}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_python(code, absent=()):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=set(absent) or "()") + code],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        cwd=os.path.dirname(__file__),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


# Modules named after a backend are for it alone; `generation/backends.py` imports them there.
IMPORT_ALL = """
import os
import dl_techniques
names = [m.name for m in pkgutil.walk_packages(dl_techniques.__path__, "dl_techniques.")]
own = os.environ["KERAS_BACKEND"]
names = [
    name
    for name in names
    if not name.split(".")[-1].startswith(tuple({"jax_", "torch_"} - {own + "_"}))
]
for name in names:
    importlib.import_module(name)
"""

TRAIN = """
import tempfile
import numpy as np
from tiny_models import mixed_batch, tiny_nanovlm
from dl_techniques.training.trainer import NanoVLMTrainer

model, batch = tiny_nanovlm(), mixed_batch()
labels = np.where(batch["attention_mask"], batch["text_tokens"], -100).astype("int32")
assert NanoVLMTrainer(model).train_step((batch, labels))["loss"] > 0
model.save(tempfile.mkdtemp() + "/model.keras")
"""


def test_one_installed_backend_is_enough():
    others = [name for name in BACKENDS if name != keras.backend.backend()]
    code = IMPORT_ALL + TRAIN + "print(len(names), *sys.modules)"
    count, *modules = run_python(code, absent=others)
    assert int(count) > 50
    assert keras.backend.backend() in modules
    assert not set(others) & set(modules)


def test_no_module_loads_another_backend_than_keras_does():
    code = "import keras\nbefore = set(sys.modules)" + IMPORT_ALL
    code += "print('loaded', *set(sys.modules) - before)"
    loaded = run_python(code)
    assert "loaded" in loaded
    assert not set(BACKENDS) & set(loaded)


def test_the_package_alone_loads_nothing():
    modules = run_python("import dl_techniques\nprint(dl_techniques.__version__, *sys.modules)")
    assert "dl_techniques" in modules
    assert not {"keras", "numpy", *BACKENDS} & set(modules)


def test_metrics_need_no_keras():
    code = "from dl_techniques.evaluation import intervals, metrics\nprint(*sys.modules)"
    assert "dl_techniques.evaluation.metrics" in run_python(code, absent=("keras", *BACKENDS))


@pytest.mark.parametrize("package", ["preprocessing", "datasets"])
def test_text_images_and_readers_need_no_keras(package):
    code = f"""
import dl_techniques.{package} as package
failed = []
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        failed.append(module.name + ":" + str(error.name))
print("done", *failed)
"""
    done, *failed = run_python(code, absent=("keras", *BACKENDS))
    # These make Keras' own data sets.
    keras_data = [f"{name}:keras" for name in ("tensorflow_batches", "vqa_batches", "vqa_dataset")]
    expected = {"preprocessing": [], "datasets": keras_data}
    assert [name.removeprefix(f"dl_techniques.{package}.") for name in failed] == expected[package]


def test_what_the_readme_imports_is_there():
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    imports = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dl_techniques")
    ]
    missing = [
        f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
    ]
    assert len(imports) > 20 and not missing
