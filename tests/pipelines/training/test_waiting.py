"""While no worker trains the user is told why, and a run that gets no room ends without a loss."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller import state as states
from ray.train.v2.api.exceptions import ControllerError

from pipelines.cluster import capacity
from pipelines.config.run import RunConfig
from pipelines.data.unreadable import find_on_all_nodes
from pipelines.errors import UserError
from pipelines.runs import runlog, warned
from pipelines.training import driver, waiting
from pipelines.training.retries import GaveUpError, Retries
from pipelines.training.waiting import Awaited, Board

Make = Callable[..., RunConfig]
SHARE = {"CPU": 1.0, "GPU": capacity.GPU_SHARE}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """On a cluster that is a dictionary, and has one free GPU of two."""
    there: dict[str, str] = {}
    monkeypatch.setattr(
        waiting, "_internal_kv_put", lambda key, value, overwrite: there.update({key: value})
    )
    monkeypatch.setattr(waiting, "_internal_kv_get", there.get)
    monkeypatch.setattr(waiting, "_internal_kv_del", lambda key, del_by_prefix: there.clear())
    monkeypatch.setattr(capacity, "free_room", lambda share: 1)
    return Board()


class Controller:
    """Goes through states as Ray's does, and tells of each."""

    def __init__(self, awaited: Awaited) -> None:
        self.awaited, self.state = awaited, states.InitializingState()
        awaited.after_controller_start(None)

    def enter(self, kind: str, **attributes: object) -> None:
        made = getattr(states, f"{kind}State")
        state = made.__new__(made)
        vars(state).update(attributes)
        before, self.state = self.state, state
        self.awaited.after_controller_state_update(before, state)


def test_a_group_that_gets_no_room_is_told_of_until_it_has_some(
    make_config: Make,
    board: Board,
    now: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, later = make_config(), list[str]()
    monkeypatch.setattr(waiting, "say", later.append)
    controller = Controller(pickle.loads(pickle.dumps(Awaited(config, SHARE, board))))
    with waiting.said(config, SHARE, board) as look:
        for kind in ("Scheduling", "Running", "Restarting", "Scheduling"):
            controller.enter(kind)
            look()
            now[0] += 5
        assert not caplog.records, "that is how every group begins"
        now[0] += 55
        controller.enter("Rescheduling")  # Ray has given up for the first time
        for _ in range(61):
            look()
            now[0] += 1
            controller.enter("Scheduling")
        lines = caplog.messages + later
        assert len(caplog.messages) == 1, "the others are not kept with the run"
        room = "room for 1 of 2 workers: 2 CPUs and 2 GPUs asked, 1 CPUs and 1 GPUs free"
        assert lines == [f"no worker trains since {s} s: {room}" for s in (65, 95, 125)]
        controller.enter("Running")
        for _ in range(61):
            look()
            now[0] += 1
        assert caplog.messages + later == lines
    assert board.waited() is None


def test_what_kept_a_group_from_starting_is_told_unless_it_is_room(
    make_config: Make, board: Board, now: list[float]
) -> None:
    controller = Controller(Awaited(make_config(), SHARE, board))
    controller.enter("Scheduling")
    failed = ControllerError(WorkerGroupStartupTimeoutError(2))
    controller.enter("Rescheduling", training_failed_error=failed)
    assert board.failure() is None
    controller.enter("Scheduling")
    failed = ControllerError(WorkerGroupStartupFailedError("a worker has no module x"))
    controller.enter("Rescheduling", training_failed_error=failed)
    (_, said) = board.failure() or (0, "")
    assert "did not start (a worker has no module x)" in said


@pytest.mark.parametrize("state", ["Initializing", "Restarting"])
def test_a_run_with_fewer_workers_does_not_even_try(
    make_config: Make, board: Board, now: list[float], state: str
) -> None:
    """Ray stays in its state as long as there is room for less than `trainer.min_workers`."""
    controller = Controller(Awaited(make_config("trainer.min_workers=2"), SHARE, board))
    controller.enter(state)
    controller.enter(state)
    assert board.waited() is None
    now[0] += 12
    controller.enter(state)
    assert board.waited() == 12


def test_nobody_is_waited_for_longer_than_the_limit(
    make_config: Make, board: Board, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("ray.wait_for_nodes_s=100")

    def waits(seconds: float) -> None:
        controller = Controller(Awaited(config, SHARE, board))
        controller.enter("Running")
        now[0] += 1000  # that a worker trained for, until its machine was gone
        controller.enter("Restarting")
        now[0] += seconds
        controller.enter("Rescheduling")

    waits(100)
    said = r"wait_for_nodes_s=100: room for 1 of 2.*same command"
    with pytest.raises(GaveUpError, match=said) as end:
        waits(101)
    assert isinstance(end.value.for_users(), UserError)
    monkeypatch.setattr(capacity, "may_grow", lambda config: True)
    waits(10_000)  # spot machines come back some time
    monkeypatch.setattr(capacity, "free_room", lambda share: 2)
    with pytest.raises(GaveUpError):
        waits(101)  # there is room, and the group begins in vain


def test_failures_after_which_a_run_goes_on_are_said(
    make_config: Make,
    board: Board,
    now: list[float],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    retries = Retries(tmp_path, -1, board.failed)
    lost = WorkerHealthCheckFailedError("no answer", RayActorError())
    taken = WorkerHealthCheckFailedError("drained", RayActorError(preempted=True))
    with waiting.said(make_config(), SHARE, board) as look:
        for errors in ({1: lost}, {1: lost}, {0: taken}):
            retries.after_exception(None, errors)
            for _ in range(3):
                look()
                now[0] += 2
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("worker 1 ended without a word")
    assert f"start again from what is kept; all of it: {tmp_path}/failures/rank-1-a" in first
    assert second != first
    assert "a machine is taken away" in third


class Nothing:
    """Holds what it reserves."""


@pytest.mark.slow
@pytest.mark.night
@pytest.mark.ray
def test_a_run_without_room_ends_and_the_same_command_goes_on(
    local_ray: None,
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of the four CPUs go once the run has begun to prepare: as if machines were lost."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "12")
    config = make_config("ray.wait_for_nodes_s=13", "evaluation.start=false")
    holder: Any = ray.remote(Nothing)
    holders: list[Any] = []

    def taken(*args: Any) -> Any:
        if not holders:
            holders.append(holder.options(num_cpus=3).remote())
            ray.get(holders[0].__ray_ready__.remote())
        return find_on_all_nodes(*args)

    monkeypatch.setattr(driver, "find_on_all_nodes", taken)
    run_dir = tmp_path / "run"
    began = time.monotonic()
    with pytest.raises(UserError, match=r"waited for longer than.*room for 1 of 2 workers: 2 CPUs"):
        driver.train(config, run_dir, ["crossreid", "train"])
    assert time.monotonic() - began < 120
    assert any("no worker trains since" in line for line in warned.read(run_dir))
    ray.kill(holders[0])
    driver.train(config, run_dir, ["crossreid", "train"])
    assert list(runlog.read_metrics(run_dir))
