"""A run that is over and is begun again: nothing is trained, and what it says of itself stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.data.sample_list import remember
from pipelines.errors import UserError
from pipelines.runs import checkpoint, runlog
from pipelines.training import driver, group
from pipelines.training.job import Job
from pipelines.training.progress import Progress, is_over
from pipelines.training.summary import finish
from reid_core.types import Modality, Sample, Split

Make = Callable[..., RunConfig]
SCORES = {"rank1": 50.0, "mAP": 40.0}


def keep(folder: Path, config: RunConfig, *, stage: str = "align", epoch: int = 0) -> Progress:
    """A checkpoint as a run leaves it, with the scores that were reached."""
    progress = Progress(stage, epoch, scores={stage: dict(SCORES)}, chance=5.0)
    state: Any = {key: {} for key in checkpoint.TO_GO_ON_FROM}
    state |= {"config": config.used(), "progress": progress.state_dict()}
    checkpoint.save(folder, state | {"module": {"weight": torch.zeros(1)}})
    return progress


@pytest.fixture
def nothing_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's trainer ends without a report: its list named no checkpoint, and no epoch was left."""
    monkeypatch.setattr(Job, "of", lambda *_: None)
    monkeypatch.setattr(driver, "bank_on_ray", lambda *_, **__: nullcontext())
    monkeypatch.setattr(driver, "uses_gpu", lambda _: False)
    monkeypatch.setattr(group, "fit", lambda *_: None)


def test_a_run_that_one_process_finished_keeps_its_progress_on_ray(
    make_config: Make, tmp_path: Path, nothing_to_report: None
) -> None:
    config = make_config()
    reached = keep(tmp_path / "checkpoint_align_0000", config)
    progress = driver._fit(config, cast(Any, None), tmp_path, lambda: False)
    assert progress == reached
    assert is_over(config, progress)


def test_a_run_that_was_ended_before_its_first_epoch_stands_at_the_beginning(
    make_config: Make, tmp_path: Path, nothing_to_report: None
) -> None:
    assert driver._fit(make_config(), cast(Any, None), tmp_path, lambda: False) == Progress()


def test_more_epochs_than_are_asked_for_are_over_too(make_config: Make) -> None:
    config = make_config("cclnet.align.epochs=2")
    places = [("prepare", 5), ("align", 0), ("align", 1), ("align", 4)]
    over = [is_over(config, Progress(stage, epoch)) for stage, epoch in places]
    assert over == [False, False, True, True]


def test_the_summary_is_written_last(make_config: Make, tmp_path: Path) -> None:
    """Where it stands, the run is trained: `regdb_trials` and `tune` count it as that."""
    config, prepared = make_config(), cast(Any, SimpleNamespace(kind="sysu", measured=object()))
    progress = Progress("align", 0, scores={"align": dict(SCORES)})
    with pytest.raises(AssertionError, match="stands in a stage"):
        finish(tmp_path, config, prepared, Progress(), {})
    (tmp_path / "evaluation" / "final.npz").mkdir(parents=True)
    (tmp_path / "evaluation" / "align.npz").write_bytes(b"lists")
    with pytest.raises(OSError, match="final"):
        finish(tmp_path, config, prepared, progress, {})
    assert not (tmp_path / runlog.SUMMARY).exists()
    (tmp_path / "evaluation" / "final.npz").rmdir()
    assert finish(tmp_path, config, prepared, progress, {})["rows"]["final"] == SCORES
    assert (tmp_path / "evaluation" / "final.npz").read_bytes() == b"lists"


def test_a_run_took_what_all_its_commands_took(make_config: Make, tmp_path: Path) -> None:
    """Of an interrupted run, the last command knows its own part alone."""
    prepared = cast(Any, SimpleNamespace(kind="sysu", measured=None))
    for epoch in range(3):
        seconds = {"step": 90.0, "evaluate": 10.0}
        runlog.append_metrics(tmp_path, {"stage": "align", "epoch": epoch, "seconds": seconds})
    scores = {"align": dict(SCORES), "selected": dict(SCORES)}
    progress = Progress("align", 2, scores=scores)
    summary = finish(tmp_path, make_config(), prepared, progress, {"start": 5.0, "train": 100.0})
    assert summary["seconds"] == {"start": 5.0, "train": 300.0, "total": 305.0}
    assert "selected" not in summary["rows"], "of the run whose stage this one started from"


def test_the_first_command_started_a_run(make_config: Make, tmp_path: Path) -> None:
    def started(when: str | None = None) -> str:
        path = tmp_path / runlog.ENVIRONMENT
        if when is not None:
            path.write_text(json.dumps({"started": when}))
        runlog.claim(tmp_path, make_config(), ["crossreid"])
        return json.loads(path.read_text())["started"]

    assert started("2026-01-01T00:00:00+00:00") > "2026-01-02", "nothing was trained before"
    runlog.append_metrics(tmp_path, {"stage": "align", "epoch": 0, "seconds": {}})
    assert started("2026-01-01T00:00:00+00:00") == "2026-01-01T00:00:00+00:00"
    assert started("") > "2026-01-02"


def test_a_summary_needs_no_rank_lists(make_config: Make, tmp_path: Path) -> None:
    prepared = cast(Any, SimpleNamespace(kind="sysu", measured=object()))
    progress = Progress("align", 0, scores={"align": dict(SCORES)})
    finish(tmp_path, make_config(), prepared, progress, {})
    written = json.loads((tmp_path / runlog.SUMMARY).read_text())
    assert written["rows"]["final"] == SCORES
    assert not (tmp_path / "evaluation").exists()


def test_a_start_is_the_end_of_a_stage_that_the_run_has(make_config: Make, tmp_path: Path) -> None:
    longer = make_config("cclnet.prepare.epochs=3")
    keep(tmp_path / "half", longer, stage="prepare")
    with pytest.raises(UserError, match=r"is epoch 1 of 3 of stage 'prepare': go on with that run"):
        gate.check(make_config(f"start_from={tmp_path / 'half'}"), tmp_path / "run")
    keep(tmp_path / "prompts", make_config(), stage="prompts")
    start = f"start_from={tmp_path / 'prompts'}"
    with pytest.raises(UserError, match=r"end of stage 'prompts', which this run does not have"):
        gate.check(make_config(start, "cclnet.image_to_text=0"), tmp_path / "run")


def test_a_start_counts_the_rows_and_labels_of_its_own_data(
    make_config: Make, tmp_path: Path
) -> None:
    keep(tmp_path / "stages" / "prompts", make_config(), stage="prompts")
    start = f"start_from={tmp_path / 'stages' / 'prompts'}"
    for changed in ("data.fit=train", "cclnet.labels=identities"):
        with pytest.raises(UserError, match=rf"(?s)must agree:\n  {changed.split('=')[0]}"):
            gate.check(make_config(start, changed), tmp_path / "run")
    remember(tmp_path, Split((Sample("cam1/of/another.jpg", Modality.VISIBLE, 1),)))
    with pytest.raises(UserError, match=r"began with 1 training rows.*1 are gone: cam1/of/another"):
        gate.check(make_config(start), tmp_path / "run")


def test_a_start_after_which_no_epoch_is_left_is_refused(make_config: Make, tmp_path: Path) -> None:
    keep(tmp_path / "align", make_config())
    keep(tmp_path / "prompts", make_config(), stage="prompts")
    config = make_config(f"start_from={tmp_path / 'align'}")
    with pytest.raises(UserError, match=r"is the end of align.*earlier stage.*cclnet\.align\.epo"):
        gate.check(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    more = make_config(f"start_from={tmp_path / 'align'}", "cclnet.align.epochs=2")
    for allowed in (more, make_config(f"start_from={tmp_path / 'prompts'}")):
        gate.check(allowed, tmp_path / "run")
