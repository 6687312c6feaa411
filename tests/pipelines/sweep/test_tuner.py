"""Sweeps on Ray: what fits side by side, what Optuna is told, and real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from pipelines.cluster import capacity, nodes
from pipelines.config import run as configuration
from pipelines.config.overrides import apply
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.sweep import ledger as ledgers
from pipelines.sweep import search_space
from pipelines.sweep.ledger import Ledger
from pipelines.training.room_for_runs import slots
from tests.pipelines.searches import KEEP, WEIGHT, ended, search_writer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


class TestSlots:
    """Trials that fit side by side: workers and, on CPUs, one core for the images."""

    def config(self, *overrides: str) -> RunConfig:
        tree: dict[str, Any] = {"data": {"root": "/x"}, "trainer": {"num_workers": 2}}
        for override in overrides:
            apply(tree, override)
        return configuration.validate(tree, source="test")

    def given(self, monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
        there = [{"NodeID": str(i), "Resources": one} for i, one in enumerate(machines)]
        for which in ("alive", "usable"):
            monkeypatch.setattr(nodes, which, lambda: there)
        self.free(monkeypatch, *machines)

    def free(self, monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
        amounts = dict(enumerate(machines))
        monkeypatch.setattr(
            nodes, "free", lambda name: {str(i): one.get(name, 0.0) for i, one in amounts.items()}
        )

    @pytest.mark.parametrize(
        ("machines", "overrides", "use_gpu", "requested", "expected"),
        [
            ([{"CPU": 8.0}], [], False, 4, 2),
            ([{"CPU": 9.0}], [], False, 4, 3),
            ([{"CPU": 64.0}], [], False, 4, 4),
            ([{"CPU": 64.0, "GPU": 5.0}], [], True, 4, 2),
            # CPUs count beside GPUs: four per worker
            (
                [{"CPU": 8.0, "GPU": 8.0}],
                ["trainer.num_workers=1", "trainer.cpus_per_worker=4"],
                True,
                8,
                2,
            ),
            # each machine holds one worker of two CPUs: their 30 CPUs are no three runs of nine
            (
                [{"CPU": 3.0}] * 10,
                ["trainer.num_workers=4", "trainer.cpus_per_worker=2"],
                False,
                9,
                2,
            ),
            ([{"CPU": 2.0}], ["trainer.min_workers=1"], False, 2, 1),
        ],
    )
    def test_by_hand(
        self,
        monkeypatch: pytest.MonkeyPatch,
        machines: list[dict[str, float]],
        overrides: list[str],
        use_gpu: bool,
        requested: int,
        expected: int,
    ) -> None:
        self.given(monkeypatch, *machines)
        assert slots(self.config(*overrides), use_gpu=use_gpu, requested=requested) == expected

    def test_machine_that_is_too_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given(monkeypatch, {"CPU": 2.0})
        with pytest.raises(UserError, match=r"machines: 2 CPUs\); each run takes one CPU beyond"):
            slots(self.config(), use_gpu=False, requested=1)

    @pytest.mark.parametrize(("free", "expected"), [(6, 3), (5.1, 2), (3.1, 1), (0.6, 1)])
    def test_gpus_that_others_hold_are_left_out_but_for_one_run_that_waits(
        self,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        free: float,
        expected: int,
    ) -> None:
        self.given(monkeypatch, {"CPU": 64.0, "GPU": 6.0})
        self.free(monkeypatch, {"CPU": 58.0, "GPU": free})
        monkeypatch.setattr(capacity, "_SETTLE_S", 0)
        assert slots(self.config(), use_gpu=True, requested=4) == expected
        assert f"{expected} runs at a time instead of 4: room for " in caplog.text

    @pytest.mark.parametrize("gpus", [0, 2])
    def test_nodes_that_are_still_to_come(self, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
        self.given(monkeypatch, {"CPU": 8.0, "GPU": float(gpus)})
        config = self.config("ray.address=auto")
        monkeypatch.setattr(capacity, "may_grow", lambda config: True)
        assert slots(config, use_gpu=True, requested=3) == 3
        monkeypatch.setattr(capacity, "may_grow", lambda config: False)
        if gpus:
            assert slots(config, use_gpu=True, requested=3) == 1
        else:
            with pytest.raises(UserError, match="not one run fits: room for 0 of 2 workers"):
                slots(config, use_gpu=True, requested=3)


class TestOptuna:
    def test_knows_what_the_sweep_found(self, write: Callable[..., Path], tmp_path: Path) -> None:
        pytest.importorskip("optuna")
        from pipelines.sweep.tuner import _optuna

        space = {WEIGHT: {"loguniform": [0.1, 10]}, KEEP: {"values": [0.0, 1.0]}}
        study = search_space.load(write(method="optuna", space=space, budget={"trials": 5}))
        ledger = Ledger(tmp_path / "sweep", study, resume=False)
        interrupted = {WEIGHT: 0.3, KEEP: 1.0}
        ledger.begin(interrupted)
        ledger.end(ended("other", {WEIGHT: 2.0, KEEP: 0.0}, 30.0))
        searcher: Any = _optuna(study, ledger)
        assert [trial.value for trial in searcher._ot_study.trials if trial.value] == [30.0]
        assert searcher.suggest("first")["values"] == interrupted
        drawn = searcher.suggest("second")["values"]
        assert 0.1 <= drawn[WEIGHT] <= 10
        assert drawn[KEEP] in (0.0, 1.0)


def peak(point: dict[str, Any], *, runs: Any) -> None:
    """Stands in for a trial: in four epochs up to a score that is highest at a weight of 1."""
    from ray import tune

    score = 50 - 10 * abs(float(np.log10(point["values"][WEIGHT])))
    for epoch in range(1, 5):
        scores = {"mAP": score * epoch / 4, "rank1": score}
        shown = {"score": scores["mAP"], "scores": scores, "runs": {"0": scores}}
        tune.report({**shown, "epochs": epoch, "finished": epoch == 4})


@pytest.mark.slow
@pytest.mark.ray
def test_optuna_with_halving_and_a_larger_budget(
    local_ray: None,
    write: Callable[..., Path],
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten trials on Ray Tune, then two more that know of the ten."""
    pytest.importorskip("optuna")
    from pipelines.sweep import tuner

    monkeypatch.setattr(tuner, "train_trial", peak)
    search = {
        "method": "optuna",
        "space": {WEIGHT: {"loguniform": [0.001, 1000]}},
        "asha": {"grace_epochs": 1, "reduction": 2},
    }
    root = tmp_path / "sweep"
    budget = {"trials": 10, "concurrent": 2}
    data = [f"data.root={tree}"]
    study = search_space.load(write(**search, budget=budget), data)
    result, best = tuner.search_for_best(study, root, [], resume=False)
    assert len(result) == 10
    assert {trial.status for trial in result} == {"finished", "stopped"}
    assert best.scores["mAP"] == max(t.scores["mAP"] for t in result if t.status == "finished")
    study = search_space.load(write(**search, budget=budget | {"trials": 12}), data)
    more, _ = tuner.search_for_best(study, root, [], resume=True)
    assert more[:10] == result
    assert len(more) == 12


@pytest.mark.slow
@pytest.mark.ray
def test_sweep_on_ray(
    local_ray: None, make_config: Callable[..., RunConfig], tmp_path: Path, capsys: Any
) -> None:
    """Two trials side by side, judged without labels; one fails and does not end the sweep; resume
    tries it again."""
    from pipelines.sweep.tuner import search_for_best

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        configuration.dump(
            make_config("trainer.num_workers=1", "cclnet.image_to_text=0", "cclnet.align.epochs=2")
        )
    )
    path = tmp_path / "search.yaml"
    content = {
        "base": str(recipe),
        "method": "axes",
        "space": {"cclnet.clustering.min_samples": {"values": [4, 500]}},
        "budget": {"concurrent": 2},
        "asha": {"grace_epochs": 1},
        "objective": "stability",
    }
    path.write_text(yaml.safe_dump(content))
    study, root = search_space.load(path), tmp_path / "sweep"
    result, best = search_for_best(study, root, ["crossreid", "tune"], resume=False)
    assert {trial.config["cclnet.clustering.min_samples"]: trial.status for trial in result} == {
        4: "finished",
        500: "failed",
    }
    assert "no cluster" in next(trial.error for trial in result if trial.status == "failed")
    run_dir = root / ledgers.FOLDER / best.name / "seed-0"
    rows = json.loads((run_dir / "summary.json").read_text())["rows"]
    assert best.scores == {**rows["final"], "stability": best.scores["stability"]}
    assert (run_dir / "report.html").is_file()
    assert (root / "report.html").is_file()
    configuration.load(root / ledgers.BEST)
    again, _ = search_for_best(study, root, ["crossreid", "tune"], resume=True)
    assert sorted((trial.name, trial.status) for trial in again) == sorted(
        (trial.name, trial.status) for trial in result
    )
    with capsys.disabled():
        Console(width=120).print(ledgers.table(again, "stability"))
