"""Runs that are lost with their process or their machine are begun again; those that fail are not.

What a machine takes with it is what is killed here: the task of a run, or the process that watches
a trial and owns the task.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions

from pipelines import cli
from pipelines.errors import UserError
from pipelines.runs import runlog
from pipelines.storage import lock
from pipelines.storage.files import append_line, to_json
from pipelines.sweep import ledger as ledgers
from pipelines.sweep import search_space, tuner
from pipelines.sweep.trial import Runs, train_trial
from pipelines.training import side_by_side
from tests.pipelines.searches import WEIGHT, ended, search_writer

REAL_TRIAL = train_trial
BEGUN, WATCHER = "begun.txt", "watcher.txt"
TASK_LOST, WATCHER_LOST, FAILS, ALWAYS_LOST = 1.0, 2.0, 3.0, 4.0


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


def killed(config: Any, run_dir: Path, command: Any, wait_s: float) -> dict[str, Any]:
    """Stands in for a run, whose folder's or weight's name says what becomes of it.

    It keeps one epoch, as a run does, and finds it when it is begun again. The word "mended" in its
    command is the cause of a failure gone.
    """
    lock.wait_until_free(run_dir, wait_s)
    with lock.held(run_dir):
        append_line(run_dir / BEGUN, "again\n")
        begun = len((run_dir / BEGUN).read_text().splitlines())
        if begun == 1:
            line = {"stage": "align", "epoch": 0, "scores": {"mAP": 40.0, "rank1": 50.0}}
            append_line(run_dir / runlog.METRICS, to_json(line, indent=None))
        what = config if isinstance(config, float) else config.cclnet.image_to_text
        if "mended" not in command:
            if what == FAILS:
                raise UserError("the disk is full")
            if what == ALWAYS_LOST or (what == TASK_LOST and begun == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if what == WATCHER_LOST and begun == 1:
                os.kill(int((run_dir.parent / WATCHER).read_text()), signal.SIGKILL)
                time.sleep(60)  # Ray ends it: it has no owner
    return {"of": run_dir.name}


def watched(point: Mapping[str, Any], *, runs: Runs) -> None:
    """A trial whose runs are `killed`."""
    from ray import tune

    folder = runs.root / ledgers.FOLDER / tune.get_context().get_trial_name()
    (folder / WATCHER).write_text(str(os.getpid()))
    # this process is the trial's own
    side_by_side._train = ray.remote(num_cpus=0, max_retries=0)(killed)
    REAL_TRIAL(point, runs=runs)


def begun(folder: Path) -> int:
    return len((folder / BEGUN).read_text().splitlines())


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_begins_again_what_is_lost_and_resume_tries_what_failed(
    local_ray: None,
    write: Callable[..., Path],
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tuner, "train_trial", watched)
    cases = [TASK_LOST, WATCHER_LOST, FAILS]
    search = write(space={WEIGHT: {"values": cases}}, budget={"concurrent": 2})
    study = search_space.load(search, [f"data.root={tree}", "trainer.num_workers=1"])
    root = tmp_path / "sweep"
    result, _ = tuner.search_for_best(study, root, ["tune"], resume=False)
    trials = {trial.config[WEIGHT]: trial for trial in result}
    assert {case: trials[case].status for case in cases} == {
        TASK_LOST: "finished",
        WATCHER_LOST: "finished",
        FAILS: "failed",
    }
    assert trials[TASK_LOST].scores == trials[WATCHER_LOST].scores == {"mAP": 40.0, "rank1": 50.0}
    folders = {case: root / ledgers.FOLDER / trial.name for case, trial in trials.items()}
    assert {case: begun(folder / "seed-0") for case, folder in folders.items()} == {
        TASK_LOST: 2,
        WATCHER_LOST: 2,
        FAILS: 1,
    }
    assert trials[FAILS].error == "the disk is full"
    said = " ".join(capsys.readouterr().out.split())
    assert f"{trials[TASK_LOST].name}: " in said
    assert "seed-0 was lost with its process or its machine" in said
    assert "begun again, 1 of 3 times" in said
    again, _ = tuner.search_for_best(study, root, ["mended"], resume=True)
    assert {trial.status for trial in again} == {"finished"}
    assert {trial.name for trial in again} == {trial.name for trial in result}
    assert begun(folders[TASK_LOST] / "seed-0") == 2, "what is over is not begun again"


@pytest.mark.slow
@pytest.mark.ray
def test_trials_of_a_data_set_are_begun_again(
    local_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(side_by_side, "_train", ray.remote(num_cpus=0, max_retries=0)(killed))
    runs: Any = {tmp_path / "lost": TASK_LOST, tmp_path / "whole": 0.0}
    with caplog.at_level(logging.WARNING):
        summaries = side_by_side.train_all(runs, [], at_once=lambda wanted: 2)
    assert {path.name: summary["of"] for path, summary in summaries.items()} == {
        "lost": "lost",
        "whole": "whole",
    }
    assert (begun(tmp_path / "lost"), begun(tmp_path / "whole")) == (2, 1)
    assert "lost was lost with its process or its machine" in caplog.text
    with pytest.raises(UserError, match="fails: the disk is full"):
        side_by_side.train_all({tmp_path / "fails": FAILS}, [], at_once=lambda wanted: 1)  # type: ignore[dict-item]
    assert begun(tmp_path / "fails") == 1
    with pytest.raises(UserError, match="always: lost 4 times, with its process or its machine"):
        side_by_side.train_all({tmp_path / "always": ALWAYS_LOST}, [], at_once=lambda wanted: 1)  # type: ignore[dict-item]


def test_what_a_run_itself_met_is_no_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run whose own code met an actor that died has tried already what could be tried."""
    starts: list[float] = []
    monkeypatch.setattr(
        side_by_side, "start", lambda *of, wait_s: starts.append(wait_s) or f"task-{len(starts)}"
    )
    outcomes: list[Exception] = [exceptions.NodeDiedError("its node is gone")]
    own = exceptions.RayTaskError("train", "traceback", exceptions.ActorDiedError())
    outcomes.append(own.as_instanceof_cause())
    assert isinstance(outcomes[1], exceptions.ActorDiedError)

    def get(task: str) -> None:
        raise outcomes[len(starts) - 1]

    monkeypatch.setattr(ray, "get", get)
    run = side_by_side.Run(None, tmp_path / "run", [])  # type: ignore[arg-type]
    assert run.summary() is None
    assert run.task == "task-2"
    with pytest.raises(exceptions.RayTaskError):
        run.summary()
    assert len(starts) == 2
    assert starts[1] > 90, "a lock may outlive the machine that held it"


def test_a_folder_is_waited_for_while_who_was_lost_is_in_it(tmp_path: Path) -> None:
    began = time.monotonic()
    lock.wait_until_free(tmp_path, 60)
    assert time.monotonic() - began < 10
    with lock.held(tmp_path):
        lock.wait_until_free(tmp_path, 0.1)
        with (
            pytest.raises(lock.InUseError, match="another process trains in"),
            lock.held(tmp_path),
        ):
            pass


def test_the_command_says_which_trials_failed(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After all that it says of a sweep without failures, with exit code 1."""
    whole = [ended("trial-000", {WEIGHT: 0.1}, 40.0)]
    results = [[*whole, ended("trial-001", {WEIGHT: 1.0}, None)], whole]
    monkeypatch.setattr(
        tuner, "search_for_best", lambda *_, **__: (trials := results.pop(0), trials[0])
    )
    monkeypatch.setattr(
        sys, "argv", ["crossreid", "tune", str(write()), "--out", str(tmp_path / "sweep")]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "best: trial-000" in said
    assert "report: " in said
    assert "1 of 2 trials failed: no cluster" in said
    assert "--resume tries them again" in said
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
