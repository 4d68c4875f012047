"""Runs us and a peer in processes of their own, one after the other, and prints the ratios.

Each process gets the same environment and the machine for itself. Its peak memory is the largest
resident set the system has counted for it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable


def run_child(script: str, role: str, backend: str, rounds: int, *more: str) -> dict:
    """Run `script --role ROLE` in a new process; return the JSON object it prints last."""
    command = [sys.executable, script, "--role", role, "--rounds", str(rounds), *more]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{role} on {backend} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(step: Callable[[], object], rounds: int, warm_up: int = 2) -> dict:
    """Return the first call's time, the median time of later ones, and the peak memory in MB."""
    times = []
    for _ in range(warm_up + rounds):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    steady = sorted(times[warm_up:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": times[0], "median": steady[len(steady) // 2], "peak_mb": peak}


def print_report(figures: list[dict]) -> None:
    """Print a table, then all figures as one line of JSON."""
    print(f"{'figure':20s} {'backend':10s} {'ours':>9s} {'peer':>9s} {'ratio':>6s} unit")
    for f in figures:
        print(
            f"{f['name']:20s} {f['backend']:10s} {f['ours']:9.3f} {f['peer']:9.3f} "
            f"{f['ratio']:6.2f} {f['unit']}"
        )
    print(json.dumps({"figures": figures}))


def figure(name: str, backend: str, ours: float, peer: float, unit: str) -> dict:
    """Return one row of the report."""
    return {
        "name": name,
        "backend": backend,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "ratio": round(ours / peer, 4),
        "unit": unit,
    }
