import os

import pytest

from dl_techniques.utils.compilation_cache import keep_compiled_programs

FOLDER = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""})


def test_the_users_cache_folder_is_the_default(tmp_path):
    keep_compiled_programs()
    assert os.environ[FOLDER] == str(tmp_path / ".cache" / "dl_techniques" / "jax")
    assert float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]) < 1


def test_the_cache_home_is_respected(tmp_path):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "elsewhere")
    keep_compiled_programs()
    assert os.environ[FOLDER] == str(tmp_path / "elsewhere" / "dl_techniques" / "jax")


@pytest.mark.parametrize("choice", ["/my/folder", ""])
def test_the_users_choice_stays(choice):
    os.environ[FOLDER] = choice
    keep_compiled_programs()
    assert os.environ[FOLDER] == choice
