"""Where compiled programs are kept between runs of the command line."""

import os
from pathlib import Path


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles on disk, so that the next run need not compile it again.

    The folder is JAX_COMPILATION_CACHE_DIR, else `dl_techniques/jax` in XDG_CACHE_HOME or
    ~/.cache; an empty JAX_COMPILATION_CACHE_DIR turns it off. To be called before JAX is imported.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "dl_techniques" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
