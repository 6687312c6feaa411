"""A program in a process tree of its own, and the most memory that the tree held."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_EVERY_S = 0.5


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments`; the peak of its tree's proportional memory, in bytes.

    Raises:
        SystemExit: the program failed.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, _proportional_memory(child.pid))
        time.sleep(_EVERY_S)
    if child.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)}: exit code {child.returncode}")
    return peak


def _proportional_memory(pid: int) -> int:
    """Sum of the proportional set sizes of a process and all its descendants, in bytes."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
