"""Calibrating a run: on validation identities or on clusters; kept, read again, refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.data.prepare import fit_rows, read
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrate import calibrate, calibrate_finished
from pipelines.evaluation.calibrated import PSEUDO, TRAINED, VALIDATION
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.evaluation.encoder import open_encoder
from pipelines.report import reliability
from pipelines.runs import checkpoint
from reid_core.types import Modality
from tests.pipelines.trained import save_run


@pytest.fixture
def run(tmp_path: Path, tree: Path) -> Path:
    """A run of the bundled weights whose data are the small generated tree."""
    made = save_run(tmp_path / "run")
    (made / "data").symlink_to(tree)
    return made


def test_on_validation_identities_and_off_by_little_on_test_identities(run: Path) -> None:
    made = calibrate(run)
    assert (made.source, made.caution) == (VALIDATION, "")
    assert set(made.maps) == {"infrared visible", "infrared infrared", "visible visible"}
    again = calibrated.load(run, fingerprint=made.fingerprint)
    assert again == made
    assert calibrated.load(run, fingerprint="another") is None
    likely = made.probability(0.999, "visible", "infrared")
    unlikely = made.probability(-0.9, "infrared", "visible")
    assert likely is not None
    assert unlikely is not None
    assert likely > unlikely
    assert made.probability(0.5, "text", "visible") is None
    shown, missing = reliability.panels(run)
    assert [panel.title for panel in shown] == [
        " with ".join(name.split()).capitalize() for name in made.maps
    ]
    assert not missing
    result = evaluate_checkpoint(run).calibration
    assert set(result) == set(made.maps)
    assert all(0 <= value <= 1 for row in result.values() for value in row.values())


def test_on_the_clusters_of_the_last_epoch(run: Path, tmp_path: Path) -> None:
    """Their labels count the rows that were trained on."""
    run = save_run(tmp_path / "other", fit="train+val")
    (run / "data").symlink_to(tmp_path / "run" / "data")
    train = fit_rows(read(open_encoder(run).config), open_encoder(run).config)
    folder = checkpoint.find(run)
    state = checkpoint.load(folder)
    labels = {
        f"labels.{m}": torch.tensor(train.pids[train.rows(m)])
        for m in (Modality.VISIBLE, Modality.INFRARED)
    }
    pairs = torch.stack([torch.tensor(sorted(set(train.pids.tolist())))] * 2, dim=1)
    state |= {"epoch": labels | {"pairs": pairs}}
    state.pop("format")
    checkpoint.save(folder, state, {})
    made = calibrate(run, labels="pseudo")
    assert made.source == PSEUDO
    assert "expect less" in made.caution
    assert 0 < made.maps["infrared visible"].prior < 0.5, "matched clusters are one class"


def test_identities_that_were_trained_on_are_no_validation_identities(
    run: Path, tmp_path: Path
) -> None:
    known = save_run(tmp_path / "known", fit="train+val")
    (known / "data").symlink_to(run / "data")
    assert calibrate(known).source == TRAINED
    (panel, *_), _ = reliability.panels(known)
    assert "the encoder knows these identities" in panel.words


def test_the_end_of_a_run_calibrates_once_and_never_fails(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate_finished(run)
    file = checkpoint.find(run) / calibrated.FILE
    written = file.stat().st_mtime_ns
    calibrate_finished(run)
    assert file.stat().st_mtime_ns == written, "what somebody calibrated stays"
    calibrate_finished(save_run(tmp_path / "without data"))
    assert "similarities have no probability yet" in caplog.text
    assert "is not a folder" in caplog.text


class TestBadInput:
    def test_neither_validation_nor_clusters(self, run: Path) -> None:
        with pytest.raises(UserError, match="keeps no pseudo-labels"):
            calibrate(run, labels="pseudo")
        with pytest.raises(UserError, match="--labels maybe"):
            calibrate(run, labels="maybe")

    def test_a_damaged_file(self, run: Path) -> None:
        assert "not calibrated" in reliability.panels(run)[1]
        (checkpoint.find(run) / calibrated.FILE).write_text("{")
        with pytest.raises(UserError, match="is damaged"):
            calibrated.load(run)
        assert "is damaged" in reliability.panels(run)[1], "a report is written all the same"
        (checkpoint.find(run) / calibrated.FILE).write_text(json.dumps({"format": 9, "maps": {}}))
        with pytest.raises(UserError, match="another format"):
            calibrated.load(run)
