"""RegDB's ten trials: trained, side by side or in turn, continued, averaged, told."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from typer.testing import CliRunner

import pipelines
from pipelines import cli
from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.data.listed import read
from pipelines.errors import UserError
from pipelines.evaluation import regdb_trials
from pipelines.report import trials_page
from pipelines.runs import runlog, warned
from pipelines.training import local, side_by_side
from reid_core.datasets import LAYOUTS, synthetic
from tests.pipelines.fake_run import Page

NAME, PROTOCOL = LAYOUTS["regdb"].headline, LAYOUTS["regdb"].headline_words


def scores(rank1: float) -> dict[str, float]:
    return {"rank1": rank1, "rank5": 80.0, "rank10": 90.0, "mAP": rank1 - 5, "mINP": 30.0}


def fake_summary(trial: int) -> dict[str, Any]:
    """Rank-1 of trial t is 60 + t after training and 20 before."""
    entry = {"mean": scores(60.0 + trial), "std": scores(0.0)}
    counts = {"num_valid_queries": 2060, "num_invalid_queries": 0}
    return {
        "rows": {"start": scores(20.0), "final": scores(60.0 + trial)},
        "protocol": PROTOCOL,
        "chance": {"rank1": 0.5},
        "seconds": {"start": 1.0, "train": 10.0, "total": 11.0},
        "seed": 0,
        "evaluation": {NAME: entry | counts},
    }


class FakeTrainer:
    """Leaves the files of a run, and remembers which trials it was asked for."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.fails_at = fails_at

    def __call__(self, runs: Mapping[Path, RunConfig]) -> dict[Path, dict[str, Any]]:
        return {run_dir: self.train(config, run_dir) for run_dir, config in runs.items()}

    def train(self, config: RunConfig, run_dir: Path) -> dict[str, Any]:
        trial = config.data.trial
        assert isinstance(trial, int)
        self.asked.append(trial)
        runlog.claim(run_dir, config, ["crossreid", "train"])
        if trial == self.fails_at:
            raise UserError("the disk is full")
        summary = fake_summary(trial)
        runlog.write_summary(run_dir, summary)
        return summary


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config("data.kind=regdb", "data.trial=all")


def test_all_ten_are_trained_and_averaged(config: RunConfig, tmp_path: Path) -> None:
    train = FakeTrainer()
    summary = regdb_trials.train_all(config, tmp_path, train)
    assert train.asked == list(range(1, 11))
    assert sorted(path.name for path in tmp_path.glob("trial-*")) == [
        f"trial-{n:02d}" for n in range(1, 11)
    ]
    rank1 = np.arange(61, 71)
    assert summary["rows"]["final"] == scores(rank1.mean())
    assert summary["rows"]["start"] == scores(20.0)
    assert summary["std"]["final"]["rank1"] == pytest.approx(rank1.std(), abs=1e-4)
    assert summary["std"]["start"]["rank1"] == 0
    assert summary["evaluation"][NAME]["mean"] == scores(rank1.mean())
    assert summary["evaluation"][NAME]["std"]["mAP"] == pytest.approx(rank1.std(), abs=1e-4)
    assert summary["evaluation"][NAME]["num_valid_queries"] == 2060
    assert summary["seconds"]["total"] == 110
    assert summary["trials"]["07"]["final"]["rank1"] == 67
    assert summary["protocol"].endswith("mean of the 10 trials")
    assert json.loads((tmp_path / runlog.SUMMARY).read_text()) == summary


def test_finished_trials_are_not_trained_again(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"):
        regdb_trials.train_all(config, tmp_path, FakeTrainer(fails_at=4))
    assert not (tmp_path / runlog.SUMMARY).exists()
    with pytest.raises(UserError, match=r"trials trial-04, trial-05.* are not finished"):
        trials_page.write(tmp_path)
    again = FakeTrainer()
    whole = regdb_trials.train_all(config, tmp_path, again)
    assert again.asked == list(range(4, 11))
    third = FakeTrainer()
    assert regdb_trials.train_all(config, tmp_path, third) == whole
    assert third.asked == []


def test_another_configuration_is_refused_before_any_training(
    config: RunConfig, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    regdb_trials.train_all(config, tmp_path, FakeTrainer())
    other = make_config("data.kind=regdb", "data.trial=all", "seed=3")
    train = FakeTrainer()
    with pytest.raises(UserError, match=r"trial-01 .* another configuration:\n  seed: 0 -> 3"):
        regdb_trials.train_all(other, tmp_path, train)
    assert train.asked == []
    with pytest.raises(UserError, match=r"trial-01 .* another configuration"):  # of a dry run too
        gate.describe(regdb_trials.runs(other, tmp_path))


def test_trials_of_other_images_are_not_averaged_with_those_that_are_finished(
    config: RunConfig, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="disk is full"):
        regdb_trials.train_all(config, tmp_path, FakeTrainer(fails_at=6))
    moved = make_config("data.kind=regdb", "data.trial=all", f"data.root={tmp_path}")
    train = FakeTrainer()
    with pytest.raises(UserError, match=r"trial-01 is finished, with the images of "):
        regdb_trials.train_all(moved, tmp_path, train)
    assert train.asked == []


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_list_of_a_later_trial_that_is_gone_is_refused_before_any_training(
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: Literal["local", "ray"],
) -> None:
    root = tmp_path / "regdb"
    synthetic.write(root, num_identities=6, seed=1, layout="regdb", height=32)
    (root / "idx/train_thermal_7.txt").unlink()

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("something begins")

    monkeypatch.setattr(side_by_side, "session", begin)
    monkeypatch.setattr(local, "train", begin)
    config = make_config("data.kind=regdb", "data.trial=all", root=root)
    with pytest.raises(UserError, match=r"train_thermal_7\.txt"):
        pipelines.train(config, out=tmp_path / "out", backend=backend)


def test_the_folder_of_a_single_run_is_refused(
    config: RunConfig, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    runlog.claim(tmp_path, make_config(), [])
    with pytest.raises(UserError, match="holds a single run"):
        regdb_trials.train_all(config, tmp_path, FakeTrainer())
    with pytest.raises(UserError, match="holds a single run"):  # of a dry run too
        regdb_trials.runs(config, tmp_path)


def test_the_page_tells_mean_deviation_and_every_trial(config: RunConfig, tmp_path: Path) -> None:
    regdb_trials.train_all(config, tmp_path, FakeTrainer())
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    page = Page((tmp_path / "report.html").read_text())
    assert ["final", "65.50 ± 2.87", "80.00 ± 0.00"] in [row[:3] for row in page.rows]
    assert [NAME, "65.50 ± 2.87", "80.00 ± 0.00"] in [row[:3] for row in page.rows]
    assert ["07", "67.00", "80.00"] in [row[:3] for row in page.rows]
    assert page.says("mean of the 10 trials")


@pytest.mark.slow
@pytest.mark.ray
class TestSideBySide:
    """Runs as tasks of one Ray; two at a time on four CPUs."""

    def test_trials_are_those_of_one_after_the_other(
        self,
        local_ray: None,
        make_config: Callable[..., RunConfig],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        root = tmp_path / "regdb"
        synthetic.write(root, num_identities=12, seed=5, layout="regdb", height=64)
        one = ("data.kind=regdb", "trainer.num_workers=1", "cclnet.image_to_text=0")
        short = (
            "cclnet.align.epochs=1",
            "cclnet.align.batches_per_epoch=1",
            "evaluation.start=false",
        )
        monkeypatch.setattr(regdb_trials, "TRIALS", (1, 2))
        config = make_config(*one, *short, "data.trial=all", root=root)
        together = pipelines.train(config, out=tmp_path / "together")
        lines = [
            list(runlog.read_metrics(regdb_trials.folder(tmp_path / "together", n))) for n in (1, 2)
        ]
        assert all(lines)
        for trial in (1, 2):
            alone = pipelines.train(
                make_config(*one, *short, f"data.trial={trial}", root=root),
                out=tmp_path / f"alone-{trial}",
            )
            assert together["trials"][f"{trial:02d}"] == alone["rows"]

    def test_two_trials_are_under_way_at_a_time(
        self,
        local_ray: None,
        make_config: Callable[..., RunConfig],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Each of two waits until the other has begun: one after the other, neither would end."""
        import ray

        root = tmp_path / "regdb"
        synthetic.write(root, num_identities=6, seed=1, layout="regdb", height=32)

        of_trial, summarize = fake_summary, regdb_trials.summarize  # which Ray pickles whole

        def train(config: Any, run_dir: Path, command: Any, wait_s: float) -> dict[str, Any]:
            begins = time.time()
            run_dir.mkdir(parents=True)
            (run_dir / "begun").touch()
            while len(list(run_dir.parent.glob("*/begun"))) < 2:
                if time.time() > begins + 120:
                    raise UserError("the other one has not begun")
                time.sleep(0.05)
            times = {"begins": begins, "ends": time.time()}
            return {**of_trial(config.data.trial), "seconds": times}

        summaries: list[Any] = []

        def remembered(each: Mapping[int, Any]) -> Any:
            summaries.extend(each.values())
            return summarize(each)

        monkeypatch.setattr(regdb_trials, "TRIALS", (1, 2))
        monkeypatch.setattr(regdb_trials, "summarize", remembered)
        monkeypatch.setattr(side_by_side, "_train", ray.remote(num_cpus=0)(train))
        one = ("data.kind=regdb", "trainer.num_workers=1", "data.trial=all")
        pipelines.train(make_config(*one, root=root), out=tmp_path / "out")
        first, second = (summary["seconds"] for summary in summaries)
        assert first["begins"] < second["ends"]
        assert second["begins"] < first["ends"]

    def test_one_that_fails_is_named_and_the_others_are_finished(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import ray

        from pipelines.training import side_by_side

        def train(config: Any, run_dir: Path, command: Any, wait_s: float) -> dict[str, Any]:
            if run_dir.name == "b":
                raise UserError("the disk is full")
            with warned.kept(run_dir):
                logging.getLogger("pipelines.data.prepare").warning("left out: %s[1].jpg", "x")
                time.sleep(1)
            return {"of": run_dir.name}

        monkeypatch.setattr(side_by_side, "_train", ray.remote(num_cpus=0)(train))
        done: list[str] = []
        monkeypatch.setattr(side_by_side, "say", done.append)
        runs: Any = {tmp_path / name: None for name in "abcd"}
        for run_dir in runs:
            run_dir.mkdir()
        (tmp_path / "a" / warned.FILE).write_text("what an earlier command warned of\n")
        with pytest.raises(UserError, match="b: the disk is full"):
            side_by_side.train_all(runs, [], at_once=lambda wanted: 2)
        assert "a is trained" in done
        (left_out,) = (line for line in done if line.endswith("left out: x[1].jpg"))
        assert left_out.startswith("a: ")
        assert "d begins" not in done
        del runs[tmp_path / "b"]
        summaries = side_by_side.train_all(runs, [], at_once=lambda wanted: 2)
        assert {path.name: s["of"] for path, s in summaries.items()} == {n: n for n in "acd"}


class TestConfiguration:
    @pytest.mark.parametrize("trial", [0, 11, "some", 2.5])
    def test_no_such_trial(self, make_config: Callable[..., RunConfig], trial: Any) -> None:
        with pytest.raises(UserError, match=r'data\.trial: .*from 1 to 10, or "all"'):
            make_config("data.kind=regdb", f"data.trial={trial}")

    def test_only_regdb_has_trials(self, make_config: Callable[..., RunConfig]) -> None:
        with pytest.raises(UserError, match="sysu has no divisions"):
            make_config("data.trial=all")

    def test_one_data_set_is_one_trial(self, config: RunConfig) -> None:
        with pytest.raises(UserError, match=r"data\.trial=all is for .*train"):
            read(config)

    @pytest.mark.parametrize("recipe", ["cclnet_regdb", "csdn_regdb"])
    def test_recipes_train_all_trials(self, recipe: str) -> None:
        assert configuration.load(Path(recipe), ["data.root=/data/RegDB"]).data.trial == "all"
