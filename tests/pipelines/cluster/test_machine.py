"""What a process may use is what its container and its node give, not what the host has."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipelines.cluster import machine
from pipelines.data import check
from pipelines.training import local

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 5), ("900000 100000", 5), (None, 5)],
)
def test_cores_are_those_of_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(5)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine.cores() == expected


def test_threads_follow_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "cores", lambda: 3)
    assert local._readers(torch.device("cuda")) == 2
    assert local._readers(torch.device("cpu")) == 1
    pools: list[int] = []
    pool = ThreadPoolExecutor
    monkeypatch.setattr(check, "ThreadPoolExecutor", lambda n: (pools.append(n), pool(n))[1])
    monkeypatch.setattr(check, "cores", lambda: 3)
    list(check._in_threads(tmp_path, ["a"]))
    assert pools == [3]


def test_nobody_counts_the_hosts_cores() -> None:
    """Only the record of a run's machine does."""
    files = (ROOT / "pipelines").rglob("*.py")
    names = {path.name for path in files if "cpu_count()" in path.read_text()}
    assert names == {"environment.py"}
