"""What this process may use: cores, memory, shared memory. A container's limits count."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_STORE_SHARE = 0.3  # of the memory: what Ray takes for its object store,
_STORE_MOST = 10 * 10**9  # ... but no more than this where /dev/shm is smaller


def cores() -> int:
    """Cores that this process may run on at a time; `os.cpu_count` is those of the host."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def memory_bytes() -> int:
    """Of the machine, or less where its container is given less."""
    total: int = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # another system, or "max"
        total = min(total, int((_CGROUP / "memory.max").read_text()))
    return total


def shared_memory_bytes() -> int:
    """Size of /dev/shm, where Ray's object store lives; 0 where there is none."""
    return shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.exists() else 0


def object_store_bytes(memory: int, shared: int) -> int:
    """Largest object store, at most what Ray would choose, that stays in shared memory.

    Args:
        memory: of the machine, in bytes.
        shared: size of /dev/shm in bytes, 0 where there is none.
    """
    wanted = wanted_store_bytes(memory)
    return min(wanted, int(0.9 * shared)) if shared else wanted


def wanted_store_bytes(memory: int) -> int:
    """What /dev/shm must hold, or Ray puts its object store on the disk without a word."""
    return int(min(_STORE_SHARE * memory, _STORE_MOST))
