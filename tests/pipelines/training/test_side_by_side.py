"""How many runs are under way on a cluster that grows, and what its autoscaler is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from pipelines.cluster import capacity, nodes
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.report import page
from pipelines.training import driver, room_for_runs, side_by_side

Bundles = list[dict[str, float]]


class Cluster:
    """Machines with one GPU each, and what was asked of their autoscaler."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.asked: list[Bundles] = []

    def machines(self) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": 4.0, "GPU": 1.0}}] * self.gpus

    def ask(self, bundles: Bundles) -> None:
        self.asked.append(bundles)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    result = Cluster(gpus=1)
    for which in ("alive", "usable"):
        monkeypatch.setattr(nodes, which, result.machines)
    monkeypatch.setattr(room_for_runs, "request_resources", result.ask)
    monkeypatch.setattr(capacity, "may_grow", lambda config: True)
    return result


def of(runs: int, workers: int = 1) -> Bundles:
    return [{"CPU": 1.0, "GPU": 1.0}] * workers * runs


def test_what_has_room_begins_and_machines_are_asked_for(
    make_config: Callable[..., RunConfig], cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("trainer.num_workers=1")
    with room_for_runs.growing(config, use_gpu=True) as limit:
        cluster.gpus = 0
        assert limit(4) == 1, "the first waits for machines itself, and says so"
        cluster.gpus = 1
        assert limit(4) == 1
        cluster.gpus = 3
        assert limit(4) == 3
        assert cluster.asked == [of(4)] * 3, "again at each look"
        assert caplog.text.count("1 runs at a time instead of 4, until machines are added") == 1
        cluster.gpus = 5
        assert limit(4) == 4
        assert cluster.asked[3:] == [[]], "taken back as soon as there is room"
        cluster.gpus = 1
        assert limit(3) == 1
    assert cluster.asked[4:] == [of(3), []], "and at the end"


def test_workers_are_counted_and_cpus_for_images(
    make_config: Callable[..., RunConfig], cluster: Cluster
) -> None:
    config = make_config("trainer.num_workers=2")
    with room_for_runs.growing(config, use_gpu=True) as limit:
        cluster.gpus = 5
        assert limit(3) == 2
    with room_for_runs.growing(config, use_gpu=False) as limit:
        cluster.gpus = 1
        assert limit(3) == 1
    assert cluster.asked == [of(3, workers=2), [], [{"CPU": 1.0}] * 9, []]


def test_a_request_is_not_kept_longer_than_its_limit(
    make_config: Callable[..., RunConfig],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A driver that is killed cannot take it back, and its machines would stay up."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    config = make_config("trainer.num_workers=1", "ray.wait_for_nodes_s=60")
    with room_for_runs.growing(config, use_gpu=True) as limit:
        assert limit(2) == 1
        now[0] = 61
        assert limit(2) == limit(2) == 1
        assert cluster.asked == [of(2), []]
        assert caplog.text.count("after ray.wait_for_nodes_s=60") == 1
        cluster.gpus = 2
        assert limit(2) == 2, "machines that come later are used all the same"


def test_after_a_failure_no_other_begins_or_is_asked_for(
    make_config: Callable[..., RunConfig],
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four runs, room for two of them after the first; the second fails."""
    begun: list[str] = []

    def start(config: RunConfig, run_dir: Path, command: Sequence[str], *, wait_s: float) -> str:
        begun.append(run_dir.name)
        return run_dir.name

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        cluster.gpus = 2
        return ([], tasks) if begun == ["a"] else (tasks[-1:], tasks[:-1])

    def get(task: str) -> Mapping[str, str]:
        if task == "b":
            raise RayError("the disk is full")
        return {}

    for name, stand_in in (("wait", wait), ("get", get)):
        monkeypatch.setattr(ray, name, stand_in)
    for name, stand_in in {
        "start": start,
        "session": lambda config: nullcontext(),
        "uses_gpu": lambda config: True,
    }.items():
        monkeypatch.setattr(side_by_side, name, stand_in)
    monkeypatch.setattr(gate, "check_all", lambda runs: {})
    config = make_config("trainer.num_workers=1", "ray.address=auto")
    with caplog.at_level(logging.ERROR), pytest.raises(UserError, match="b: the disk is full"):
        side_by_side.train_on_one_cluster(dict.fromkeys(map(tmp_path.joinpath, "abcd"), config), [])
    assert begun == ["a", "b"]
    assert cluster.asked == [of(4), of(4), []]


def test_runs_one_at_a_time_pass_the_gate_once(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {tmp_path / name: SimpleNamespace(warnings=()) for name in "ab"}
    trained: list[tuple[Path, object]] = []

    def train(config: RunConfig, run_dir: Path, command: Sequence[str], *, passed: object) -> None:
        trained.append((run_dir, passed))

    monkeypatch.setattr(gate, "check_all", lambda runs: answers)
    for name, stand_in in {
        "session": lambda config: nullcontext(),
        "uses_gpu": lambda config: False,
        "slots": lambda config, use_gpu, requested: 1,
    }.items():
        monkeypatch.setattr(side_by_side, name, stand_in)
    monkeypatch.setattr(driver, "train", train)
    monkeypatch.setattr(page, "write", lambda run_dir: None)
    side_by_side.train_on_one_cluster(dict.fromkeys(answers, make_config()), [])
    assert trained == list(answers.items())
