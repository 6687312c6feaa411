"""Seeds of a trial: side by side as far as the trials leave room, one after the other else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from pipelines.config.run import RunConfig
from pipelines.runs import runlog
from pipelines.storage.files import append_line, to_json
from pipelines.sweep import entry, search_space, trial, tuner
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search_space import Study
from pipelines.sweep.trial import Runs
from tests.pipelines.searches import WEIGHT, search_writer

SEEDS = [3, 4, 5]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return search_space.load(search_writer(tmp_path)(seeds=SEEDS))


class FakeRun:
    """A run that is over when it is asked, with its seed as its score."""

    def __init__(self, happened: list[tuple[str, int]], config: RunConfig, run_dir: Path) -> None:
        self.task, self._happened, self._seed = object(), happened, config.seed
        run_dir.mkdir(parents=True)
        scores = {"mAP": float(config.seed), "rank1": 50.0}
        line = {"stage": "align", "epoch": 0, "scores": scores}
        append_line(run_dir / runlog.METRICS, to_json(line, indent=None))
        happened.append(("begins", config.seed))

    def summary(self) -> dict[str, Any]:
        self._happened.append(("is asked", self._seed))
        return {}


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (1, "begins 3, is asked 3, begins 4, is asked 4, begins 5, is asked 5"),
        (2, "begins 3, begins 4, is asked 3, begins 5, is asked 4, is asked 5"),
        (3, "begins 3, begins 4, begins 5, is asked 3, is asked 4, is asked 5"),
        (9, "begins 3, begins 4, begins 5, is asked 3, is asked 4, is asked 5"),
    ],
)
def test_so_many_have_begun_before_the_first_is_asked_for_its_summary(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, expected: str
) -> None:
    happened: list[tuple[str, int]] = []
    reports: list[dict[str, Any]] = []

    def begin(config: RunConfig, run_dir: Path, command: Sequence[str], *, held: bool) -> FakeRun:
        return FakeRun(happened, config, run_dir)

    monkeypatch.setattr(trial, "Run", begin)
    monkeypatch.setattr(ray, "wait", lambda tasks, *, timeout: (tasks, []))
    monkeypatch.setattr(tune, "report", reports.append)
    runs = Runs(study, tmp_path, ("crossreid", "tune"), seeds_at_once=at_once)
    trial._train_seeds({WEIGHT: 1.0}, tmp_path / "trial", runs)
    assert ", ".join(f"{what} {seed}" for what, seed in happened) == expected
    assert reports[-1]["finished"]
    assert reports[-1]["score"] == 4, "the mean over 3, 4 and 5"
    assert list(reports[-1]["runs"]) == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("trials", "free", "seeds"),
    [(2, 2, 1), (2, 5, 2), (1, 8, 8), (4, 3, 1), (1, 0, 1)],
)
def test_seeds_get_what_the_trials_leave_free(
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trials: int,
    free: int,
    seeds: int,
) -> None:
    begun: list[tuple[int, int]] = []
    given: dict[str, Callable[..., Any]] = {
        "session": lambda config: nullcontext(),
        "uses_gpu": lambda config: True,
        "slots": lambda config, **_: trials,
        "free_runs": lambda config, **_: free,
        "_run": lambda runs, ledger, count: begun.append((count, runs.seeds_at_once)),
    }
    for name, stand_in in given.items():
        monkeypatch.setattr(tuner, name, stand_in)
    monkeypatch.setattr(entry, "check", lambda study, ledger: None)
    tuner._finish(study, Ledger(tmp_path / "sweep", study, resume=False), [])
    assert begun == [(trials, seeds)]
