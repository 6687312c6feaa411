"""Sweeps without Ray: the search file, the points, the folder that remembers, the summary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config import run as configuration
from pipelines.errors import UserError
from pipelines.sweep import ledger as ledgers
from pipelines.sweep import page, search_space
from pipelines.sweep.ledger import Ledger, SweepTrial
from pipelines.sweep.search_space import Domain
from tests.pipelines.searches import KEEP, WEIGHT, ended, search_writer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


class TestSearchFile:
    def test_overrides_reach_every_trial_and_values_win(self, write: Callable[..., Path]) -> None:
        study = search_space.load(
            write(overrides={WEIGHT: 3.0}), ["model.height=96", "data.root=/x"]
        )
        config: Any = search_space.trial_config(study, {KEEP: 0.9}, seed=7)
        assert (config.cclnet.image_to_text, config.cclnet.swap.keep) == (3.0, 0.9)
        assert (config.model.height, str(config.data.root), config.seed) == (96, "/x", 7)

    def test_settings_of_every_method_that_is_tried_are_read(
        self, write: Callable[..., Path]
    ) -> None:
        space = {"method": {"values": ["cclnet", "bmil"]}, "bmil.teacher": {"values": [0, 0.9]}}
        assert len(search_space.points(search_space.load(write(space=space))) or ()) == 4

    def test_trials_never_see_test_identities(self, write: Callable[..., Path]) -> None:
        config = search_space.trial_config(search_space.load(write()), {}, seed=0)
        assert (config.data.fit, config.evaluation.split) == ("train", "val")

    def test_best_recipe_trains_and_measures_as_the_recipe_says(
        self, write: Callable[..., Path]
    ) -> None:
        config: Any = search_space.best_config(search_space.load(write()), {KEEP: 0.9})
        assert (config.data.fit, config.evaluation.split) == ("train+val", "test")
        assert config.cclnet.swap.keep == 0.9

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"spcae": {}}, r"unknown key spcae; valid keys here: asha, base"),
            ({"budget": {"hours": 3}}, r"unknown key budget.hours; .*concurrent, minutes, trials"),
            ({"space": {}}, "space"),
            ({"space": {WEIGHT: {"uniform": [2, 1]}}, "method": "random"}, "must be below"),
            ({"space": {WEIGHT: {"loguniform": [0, 1]}}, "method": "random"}, "above 0"),
            ({"space": {WEIGHT: {"values": [1], "uniform": [0, 1]}}}, "exactly one of"),
            ({"space": {WEIGHT: {"uniform": [0, 1]}}}, f"method=grid needs `values` for {WEIGHT}"),
            ({"method": "random"}, r"method=random needs budget\.trials"),
            (
                {"space": {"evaluation.split": {"values": ["test"]}}},
                "decided on validation identities",
            ),
            ({"overrides": {"data.fit": "train+val"}}, "data.fit is set by the sweep itself"),
            ({"space": {"cclnet.image_to_txt": {"values": [1]}}}, "did you mean image_to_text"),
            ({"space": {KEEP: {"values": [0.1, 1.5]}}}, r"cclnet\.swap\.keep: .* 1\.5"),
            ({"space": {"bmil.teacher": {"values": [0, 0.9]}}}, "a setting of bmil, which nothing"),
            ({"space": {WEIGHT: {"values": None}}}, "exactly one of"),
            ({"asha": {"grace_epochs": 1}, "seeds": [0, 1]}, "give one seed"),
            ({"objective": "accuracy"}, "objective"),
            ({"seeds": [0, 1, 0]}, "the same seed twice is the same run twice"),
            ({"seeds": [0, -5]}, "seed: must be greater than or equal to 0, got -5"),
            (
                {"objective": "stability", "overrides": {"cclnet.labels": "identities"}},
                "compares clusters, and cclnet is given identities",
            ),
            (
                {"objective": "stability", "space": {"cclnet.align.epochs": {"values": [1, 9]}}},
                r"cclnet\.align\.epochs must be at least 2",
            ),
            ({"base": "no_such_recipe.yaml"}, "no configuration file no_such_recipe"),
        ],
    )
    def test_mistake_is_named_before_any_trial(
        self, write: Callable[..., Path], changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            search_space.load(write(**changes))

    def test_halving_needs_scores_during_training(self, write: Callable[..., Path]) -> None:
        silent = {f"cclnet.{stage}.evaluate_every": 0 for stage in ("prepare", "align")}
        asha = {"grace_epochs": 2}
        with pytest.raises(UserError, match="evaluate_every above 0"):
            search_space.load(write(asha=asha, overrides=silent))
        silent["cclnet.align.evaluate_every"] = 1
        assert search_space.load(write(asha=asha, overrides=silent)).search.asha

    def test_halving_by_stability_needs_no_scores(self, write: Callable[..., Path]) -> None:
        silent = {f"cclnet.{stage}.evaluate_every": 0 for stage in ("prepare", "align")}
        path = write(asha={"grace_epochs": 2}, overrides=silent, objective="stability")
        assert search_space.load(path).search.asha

    def test_unknown_file_lists_those_that_ship(self) -> None:
        with pytest.raises(UserError, match="search_cclnet"):
            search_space.load(Path("nothing.yaml"))

    @pytest.mark.parametrize(
        "name",
        [
            path.stem
            for path in Path(search_space.__file__).parents[2].glob("tune_configs/search_*")
        ],
    )
    def test_shipped_searches_are_valid(self, name: str) -> None:
        assert search_space.load(Path(name), ["data.root=/data"]).search.space


class TestPoints:
    def test_grid_is_every_combination(self, write: Callable[..., Path]) -> None:
        result = search_space.points(search_space.load(write()))
        assert result is not None
        assert [(p[WEIGHT], p[KEEP]) for p in result] == [
            (0.1, 0.0), (0.1, 0.2), (0.1, 1.0), (1.0, 0.0), (1.0, 0.2), (1.0, 1.0),
        ]  # fmt: skip

    def test_axes_move_one_key_from_the_recipe(self, write: Callable[..., Path]) -> None:
        """The recipe's own point (0.5, 0.2) comes first and once."""
        result = search_space.points(search_space.load(write(method="axes")))
        assert result is not None
        assert [(p[WEIGHT], p[KEEP]) for p in result] == [
            (0.5, 0.2), (0.1, 0.2), (1.0, 0.2), (0.5, 0.0), (0.5, 1.0),
        ]  # fmt: skip

    def test_more_trials_keep_the_first_ones(self, write: Callable[..., Path]) -> None:
        space = {WEIGHT: {"loguniform": [0.01, 10]}, KEEP: {"uniform": [0, 1]}}
        few, more = (
            search_space.points(
                search_space.load(write(method="random", space=space, budget={"trials": n}))
            )
            for n in (3, 5)
        )
        assert few is not None
        assert more is not None
        assert more[:3] == few
        assert len({point[WEIGHT] for point in more}) == 5

    def test_loguniform_fills_every_order_of_magnitude_alike(self) -> None:
        rng = np.random.default_rng(0)
        domain = Domain(loguniform=(0.01, 10.0))
        drawn = np.log10([domain.draw(rng) for _ in range(3000)])
        shares = np.histogram(drawn, [-2, -1, 0, 1])[0] / 3000
        assert shares == pytest.approx([1 / 3] * 3, abs=0.03)

    def test_integers_include_both_ends(self) -> None:
        rng = np.random.default_rng(0)
        domain = Domain(integers=(3, 5))
        assert {domain.draw(rng) for _ in range(100)} == {3, 4, 5}


class TestLedger:
    def make(self, write: Callable[..., Path], root: Path, **changes: Any) -> Ledger:
        return Ledger(root, search_space.load(write(**changes)), resume=root.exists())

    def test_resume_goes_on_with_what_is_left(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        """Of six points one finished, one was halved, one failed, one was interrupted."""
        root = tmp_path / "sweep"
        first = self.make(write, root)
        points = search_space.points(search_space.load(write()))
        assert points is not None
        names = [first.begin(point) for point in points[:4]]
        assert names == ["trial-000", "trial-001", "trial-002", "trial-003"]
        first.end(ended(names[0], points[0], 30.0))
        first.end(ended(names[1], points[1], 20.0, status="stopped"))
        first.end(ended(names[2], points[2], None))

        again = self.make(write, root)
        assert again.left(points) == points[2:]
        assert again.pending() == {names[2]: points[2], names[3]: points[3]}
        assert [again.begin(point) for point in points[2:5]] == [names[2], names[3], "trial-004"]
        again.end(ended(names[3], points[3], 15.0))
        statuses = {trial.name: trial.status for trial in ledgers.read(root)}
        assert statuses[names[2]] == "failed", "until it was tried again"
        again.end(ended(names[2], points[2], 25.0))
        assert sorted(trial.name for trial in ledgers.read(root)) == names

    def test_equal_values_twice_are_two_trials(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        ledger = self.make(write, tmp_path / "sweep")
        assert ledger.begin({KEEP: 1.0}) != ledger.begin({KEEP: 1.0})

    def test_used_folder_without_resume(self, write: Callable[..., Path], tmp_path: Path) -> None:
        Ledger(tmp_path / "sweep", search_space.load(write()), resume=False)
        with pytest.raises(UserError, match="add --resume"):
            Ledger(tmp_path / "sweep", search_space.load(write()), resume=False)

    def test_more_budget_is_no_other_sweep(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        Ledger(tmp_path / "sweep", search_space.load(write()), resume=False)
        Ledger(tmp_path / "sweep", search_space.load(write(budget={"minutes": 9})), resume=True)
        with pytest.raises(UserError, match="objective: mAP -> rank1"):
            Ledger(tmp_path / "sweep", search_space.load(write(objective="rank1")), resume=True)

    def test_lines_are_what_readers_expect(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        ledger = self.make(write, tmp_path / "sweep")
        ledger.end(ended("trial-000", {KEEP: 1.0}, 30.0, seconds=4.0))
        line = json.loads((tmp_path / "sweep" / ledgers.TRIALS).read_text())
        assert line["name"] == "trial-000"
        assert line["config"] == {KEEP: 1.0}
        assert line["scores"] == {"mAP": 30.0, "rank1": 31.0}
        assert (line["seconds"], line["status"]) == (4.0, "finished")


class TestSummary:
    ENDED = (
        ended("a", {WEIGHT: 0.1, KEEP: 0.0}, 30.0),
        ended("b", {WEIGHT: 0.1, KEEP: 1.0}, 20.0),
        ended("c", {WEIGHT: 1.0, KEEP: 0.0}, 10.0),
        ended("d", {WEIGHT: 1.0, KEEP: 1.0}, 25.0),
        ended("e", {WEIGHT: 9.0, KEEP: 1.0}, 99.0, status="stopped"),
        ended("f", {WEIGHT: 9.0, KEEP: 0.0}, None),
    )

    def test_a_stopped_trial_is_never_the_best(self) -> None:
        order = [trial.name for trial in ledgers.ranked(self.ENDED, "mAP")]
        assert order == ["a", "d", "b", "c", "e", "f"]

    def test_sensitivity_is_the_best_of_the_others(self) -> None:
        """By hand: weight .1 -> max(30, 20), 1 -> max(10, 25); keep 0 -> 30, 1 -> 25."""
        assert ledgers.sensitivity(self.ENDED, "mAP", method="grid") == {
            WEIGHT: [(0.1, 30.0), (1.0, 25.0)],
            KEEP: [(0.0, 30.0), (1.0, 25.0)],
        }

    def test_sensitivity_of_axes_moves_one_setting(self) -> None:
        """Values come by size, whole or not; the best trial lies on its own axis alone."""
        result = (
            ended("a", {WEIGHT: 1.0, KEEP: 0.5}, 30.0),
            ended("b", {WEIGHT: 0, KEEP: 0.5}, 20.0),
            ended("c", {WEIGHT: 4, KEEP: 0.5}, 40.0),
            ended("d", {WEIGHT: 1.0, KEEP: 0.1}, 29.0),
            ended("e", {WEIGHT: 1.0, KEEP: 1}, 31.0),
        )
        assert ledgers.sensitivity(result, "mAP", method="axes") == {
            WEIGHT: [(0, 20.0), (1.0, 30.0), (4, 40.0)],
            KEEP: [(0.1, 29.0), (0.5, 30.0), (1, 31.0)],
        }

    def test_best_recipe_is_one_that_train_takes(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        study = search_space.load(write())
        ledger = Ledger(tmp_path / "sweep", study, resume=False)
        for trial in self.ENDED:
            ledger.end(trial)
        assert ledgers.write_best(ledger.root, study).name == "a"
        config: Any = configuration.load(ledger.root / ledgers.BEST)
        assert (config.cclnet.image_to_text, config.cclnet.swap.keep) == (0.1, 0.0)
        assert config.evaluation.split == "test"

    def test_nothing_finished_quotes_the_error(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        study = search_space.load(write())
        ledger = Ledger(tmp_path / "sweep", study, resume=False)
        ledger.end(self.ENDED[-1])
        with pytest.raises(UserError, match="no trial of the sweep finished: no cluster"):
            ledgers.write_best(ledger.root, study)

    def test_an_epoch_is_judged_with_and_without_labels(self) -> None:
        line = {"stage": "align", "stability": {"visible": 0.8, "infrared": 0.5}}
        assert ledgers.scores_of(line) == pytest.approx({"stability": 65.0})
        assert ledgers.scores_of(line | {"scores": {"mAP": 30.0}})["mAP"] == 30.0
        assert ledgers.scores_of({"stage": "align", "scores": {"mAP": 30.0}}) == {"mAP": 30.0}
        assert ledgers.scores_of({"stage": "prompts"}) == {}

    def test_the_recipe_and_the_page_say_that_no_label_decided(
        self, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        study = search_space.load(write(objective="stability"))
        ledger = Ledger(tmp_path / "sweep", study, resume=False)
        for name, keep, stable in (("a", 0.0, 60.0), ("b", 1.0, 70.0)):
            scores = {"stability": stable}
            ledger.end(SweepTrial(name, {KEEP: keep}, "finished", scores, runs={"0": scores}))
        assert ledgers.write_best(ledger.root, study).name == "b"
        assert (
            "stability 70.00 % (last two clusterings, no label)"
            in (ledger.root / ledgers.BEST).read_text()
        )
        shown = page.write(ledger.root).read_text()
        assert "without any label" in shown
        assert "Rank-1" not in shown

    def test_mean_over_seeds(self) -> None:
        runs = {"0": {"mAP": 10.0}, "1": {"mAP": 20.0}}
        assert ledgers.mean_scores(runs) == {"mAP": 15.0}

    def test_mean_of_what_all_seeds_have(self, caplog: pytest.LogCaptureFixture) -> None:
        """A last epoch may lack a score: the first of a stage has no stability."""
        runs = {"0": {"mAP": 10.0, "stability": 3.0}, "1": {"rank1": 5.0, "mAP": 20.0}, "2": {}}
        assert ledgers.mean_scores(runs) == {}
        del runs["2"]
        caplog.clear()
        assert ledgers.mean_scores(runs) == {"mAP": 15.0}
        assert "no mean of stability: seed 1 has none" in caplog.text
        assert "no mean of rank1: seed 0 has none" in caplog.text
