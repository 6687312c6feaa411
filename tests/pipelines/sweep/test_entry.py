"""What is asked of a sweep before it begins: data, weights, settings and rows of every trial."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipelines.errors import UserError
from pipelines.sweep import search_space
from tests.pipelines.searches import search_writer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that is not refused says so where it would start Ray."""
    from pipelines.sweep import tuner

    def begin(*_: object) -> None:
        raise AssertionError("Ray starts")

    monkeypatch.setattr(tuner, "session", begin)


def test_identities_without_labels_are_judged_by_stability(
    write: Callable[..., Path], tree: Path, tmp_path: Path
) -> None:
    """Found before anything starts, with the objective that would do."""
    from pipelines.sweep.tuner import search_for_best

    root = tmp_path / "identities"
    for modality in ("visible", "infrared"):
        (root / modality).mkdir(parents=True)
        shutil.copy(next(tree.rglob("*.jpg")), root / modality)
    study = search_space.load(write(), [f"data.root={root}", "data.kind=folder"])
    with pytest.raises(UserError, match="has none: give some, or choose objective: stability"):
        search_for_best(study, tmp_path / "sweep", [], resume=False)


ROWS = "cclnet.align.instances"
SMALL = ["model.name=crossreid-small", "model.pretrained=bundled", "model.height=64"]


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        (
            {"base": "bmil_demo.yaml", "space": {"bmil.clustering.k1": {"values": [25]}}},
            [],
            r"a trial with bmil\.clustering\.k1=25: .* must be even",
        ),
        (
            {"space": {ROWS: {"values": [15]}}},
            ["trainer.num_workers=8"],
            r"a trial with cclnet\.align\.instances=15: .* cannot be shared",
        ),
        ({}, ["model.pretrained=/nowhere.pt"], "image_to_text=0.1, .*keep=0.0: .*nowhere"),
        (
            {"space": {"model.pretrained": {"values": ["/nowhere.pt", "/elsewhere.pt"]}}},
            [],
            r"a trial with model\.pretrained=/nowhere\.pt: ",
        ),
        (
            {"objective": "stability"},
            ["data.kind=regdb", "data.trial=all"],
            "data.trial=all is for `crossreid train` alone",
        ),
    ],
)
def test_what_would_end_every_trial_ends_the_sweep_before_ray_starts(
    tmp_path: Path,
    write: Callable[..., Path],
    tree: Path,
    changes: dict[str, Any],
    overrides: list[str],
    message: str,
) -> None:
    from pipelines.sweep import tuner

    study = search_space.load(write(**changes), [f"data.root={tree}", *SMALL, *overrides])
    with pytest.raises(UserError, match=message):
        tuner.search_for_best(study, tmp_path / "sweep", [], resume=False)


def test_a_trial_that_cannot_train_is_warned_of_and_stops_no_other(
    tmp_path: Path,
    write: Callable[..., Path],
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What trials have in common is looked at once: settings of each, one data set, one model."""
    from pipelines.data import gate, listed, sound_settings, sound_weights
    from pipelines.sweep import entry, tuner

    settings, weights = Mock(wraps=sound_settings.check), Mock(wraps=sound_weights.check)
    read = Mock(wraps=listed.read)
    for module, name, counted in (
        (sound_settings, "check", settings),
        (sound_weights, "check", weights),
        (gate, "read", read),
        (entry, "read", read),
    ):
        monkeypatch.setattr(module, name, counted)
    given = [f"data.root={tree}", *SMALL, "trainer.num_workers=8"]
    study = search_space.load(write(space={ROWS: {"values": [15, 16]}}), given)
    with pytest.raises(AssertionError, match="Ray starts"):
        tuner.search_for_best(study, tmp_path / "sweep", [], resume=False)
    assert "instances=15: " in caplog.text
    assert "it will fail, and the others go on" in caplog.text
    assert [one.call_count for one in (settings, weights, read)] == [2, 1, 1]


def test_rows_are_asked_of_every_trial_and_idle_settings_said_of_all(
    tmp_path: Path,
    write: Callable[..., Path],
    tree: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Images of a folder have no cameras, which one of two values asks for."""
    from pipelines.sweep import tuner

    root = tmp_path / "crops"
    for modality in ("visible", "infrared"):
        (root / modality).mkdir(parents=True)
        shutil.copy(next(tree.rglob("*.jpg")), root / modality)
    given = [f"data.root={root}", "data.kind=folder", *SMALL]
    space = {
        "cclnet.clustering.camera_scaling": {"values": [0.5, None]},
        "cclnet.matching.temperature": {"values": [0.05, 1.0]},
    }
    study = search_space.load(write(space=space, objective="stability"), given)
    with pytest.raises(AssertionError, match="Ray starts"):
        tuner.search_for_best(study, tmp_path / "sweep", [], resume=False)
    failing = [said for said in caplog.messages if "it will fail" in said]
    assert len(failing) == 2
    assert all("camera_scaling=0.5" in said and "have no camera" in said for said in failing)
    assert sum("matching.temperature: no effect" in said for said in caplog.messages) == 1


def test_points_that_scores_will_choose_refuse_no_sweep(
    tmp_path: Path,
    write: Callable[..., Path],
    tree: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from pipelines.sweep import tuner

    given = [f"data.root={tree}", *SMALL, "trainer.num_workers=8"]
    space = {ROWS: {"integers": [1, 15]}}
    changes = {"method": "optuna", "budget": {"trials": 2}}
    study = search_space.load(write(space=space, **changes), given)
    with pytest.raises(AssertionError, match="Ray starts"):
        tuner.search_for_best(study, tmp_path / "sweep", [], resume=False)
    (said,) = (said for said in caplog.messages if "would fail" in said)
    assert "cannot be shared" in said


def test_a_sweep_whose_recipe_alone_is_refused_begins(
    tmp_path: Path, write: Callable[..., Path], tree: Path
) -> None:
    """No trial has it: the values of the space take its place."""
    from pipelines.sweep import tuner

    odd = [f"data.root={tree}", *SMALL, "trainer.num_workers=8", f"{ROWS}=15"]
    study = search_space.load(write(space={ROWS: {"values": [16]}}), odd)
    with pytest.raises(AssertionError, match="Ray starts"):
        tuner.search_for_best(study, tmp_path / "sweep", [], resume=False)
