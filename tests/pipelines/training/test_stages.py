"""Every stage leaves a checkpoint from which the next one can be started alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config.run import validate
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.training import deterministic
from tests.pipelines import small_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, small_runs.Kept]:
    folder = tmp_path_factory.mktemp("stages")
    small_runs.write_trees(folder)
    config = small_runs.make_config("cclnet", folder)
    remaining = small_runs.Kept(folder / "kept")
    run = small_runs.open_run(config, folder / "run")
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    return folder / "run", config, remaining


def test_labels_and_texts_are_handed_on(finished: tuple) -> None:
    run_dir = finished[0]
    stages = {path.name: checkpoint.load(path) for path in (run_dir / "stages").iterdir()}
    assert set(stages) == {"prepare", "prompts", "align"}
    handed = {name: set(state["progress"]["handed"]) for name, state in stages.items()}
    labels = {"labels.visible", "labels.infrared"}
    assert handed["prepare"] == labels
    assert handed["prompts"] == labels | {"anchors.visible", "anchors.infrared"}


def test_a_stage_started_alone_ends_where_the_whole_run_ends(
    finished: tuple, tmp_path: Path
) -> None:
    run_dir, config, whole = finished
    remaining = small_runs.Kept(tmp_path / "kept")
    run = small_runs.open_run(config, tmp_path / "run")
    state = checkpoint.load(run_dir / "stages" / "prompts")
    deterministic.train(
        run.job, run.bank, run.batches, remaining, device=small_runs.CPU, state=state
    )
    assert {state["progress"]["stage"] for state in remaining.states} == {"align"}
    assert remaining.hashes[-1] == whole.hashes[-1]


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 48},
        {"name": "crossreid-small-vit"},
        {"stem_blocks": 1},
        {"patch_stride": 4},
        {"pixels": "half"},
    ],
    ids=str,
)
def test_a_stage_of_another_model_or_stem_is_refused(
    finished: tuple, changed: dict[str, Any]
) -> None:
    run_dir, config, _ = finished
    start = run_dir / "stages" / "prompts"
    other = config.model_copy(
        update={"start_from": start, "model": config.model.model_copy(update=changed)}
    )
    with pytest.raises(UserError, match=r"(?s)start_from.*must agree:\n  model\."):
        checkpoint.finished_stage(other)


def test_a_stage_whose_stems_have_other_rectifiers_is_refused(tmp_path: Path) -> None:
    config = validate({"method": "csdn", "data": {"root": "/data"}}, source="test")
    other = {"method": "csdn", "data": {"root": "/data"}, "csdn": {"profile": "reference"}}
    state = {"config": config.used(), "module": {"w": torch.zeros(1)}}
    checkpoint.save(tmp_path, state, {})
    start = {"start_from": tmp_path}
    assert checkpoint.finished_stage(validate({**config.used(), **start}, source="test"))
    with pytest.raises(UserError, match=r"csdn\.stem_relu: all -> last"):
        checkpoint.finished_stage(validate(other | {**start}, source="test"))


def test_a_start_that_is_not_there_is_named(finished: tuple) -> None:
    run_dir, config, _ = finished
    nothing = config.model_copy(update={"start_from": run_dir / "nowhere"})
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.finished_stage(nothing)
