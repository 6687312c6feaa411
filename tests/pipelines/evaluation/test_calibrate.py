"""Calibrating a run: on validation identities or on clusters; kept, read again, refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import run as configuration
from pipelines.data.listed import fit_rows, read
from pipelines.data.prepare import inputs_of
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrate import (
    _classes,
    _with_images,
    _within,
    calibrate,
    calibrate_finished,
)
from pipelines.evaluation.calibrated import PSEUDO, TRAINED, VALIDATION
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.evaluation.encoder import open_encoder
from pipelines.evaluation.pairs import Known
from pipelines.report import reliability
from pipelines.runs import checkpoint
from reid_core.types import Modality, Sample, Split
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


def clustered(run: Path, **epoch: torch.Tensor) -> None:
    """Gives a run the clusters of its training rows, one per identity, and what else is given."""
    loaded = open_encoder(run)
    train = fit_rows(read(loaded.config), loaded.config)
    folder = checkpoint.find(run)
    state = checkpoint.load(folder)
    labels = {f"labels.{m}": torch.tensor(train.pids[train.rows(m)]) for m in loaded.modalities}
    state |= {"epoch": labels | epoch}
    del state["format"]
    checkpoint.save(folder, state, {})


def test_clusters_without_pairs_are_said_to_leave_out_their_modalities(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clustered(run)
    made = calibrate(run, labels="pseudo")
    assert set(made.maps) == {"infrared infrared", "visible visible"}
    (message,) = caplog.messages
    assert message.startswith("no probabilities between infrared and visible: 0 equal and ")


def test_every_modality_without_known_clusters_is_named(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of another number of rows are none of these."""
    clustered(run, **{"labels.infrared": torch.tensor([0, 1])})
    made = calibrate(run, labels="pseudo")
    assert set(made.maps) == {"visible visible"}
    assert caplog.messages == [
        "no probabilities between infrared and visible: nothing says who is who of infrared",
        "no probabilities between infrared and infrared: nothing says who is who of infrared",
    ]


def test_labels_that_both_modalities_share_are_one_class_each() -> None:
    """BMIL's joint labels: every label of both is paired with itself."""
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    assert equal_pairs(labels, labels, [[0, 0], [1, 1], [2, 2]]) == 9
    assert equal_pairs(labels, labels, []) == 0


def test_clusters_of_captions_belong_to_the_images_that_they_occur_with_most() -> None:
    """CPCL's pairs repeat and contradict each other; what occurs with nothing stays alone."""
    images, captions = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3])
    pairs = [[0, 0], [2, 0], [2, 0], [1, 0], [1, 1], [0, 2], [1, 2]]
    # the first cluster of captions means images of 2, the next one of 1, the next one of 0
    assert equal_pairs(images, captions, pairs) == 2 + 1 + 1


def equal_pairs(visible: torch.Tensor, infrared: torch.Tensor, pairs: list[list[int]]) -> int:
    """How many pairs of a row of either modality are one class, of clusters and their pairs."""
    sides = {Modality.VISIBLE: visible, Modality.INFRARED: infrared}
    split = Split(tuple(Sample(f"{m}{i}", m) for m, y in sides.items() for i in range(len(y))))
    epoch = {f"labels.{m}": y for m, y in sides.items()}
    known = _classes(epoch | {"pairs": torch.tensor(pairs).reshape(-1, 2)}, split, tuple(sides))
    first, second = (known[m].classes for m in sides)
    return int(np.equal.outer(first, second).sum())


def test_identities_that_were_trained_on_are_no_validation_identities(
    run: Path, tmp_path: Path
) -> None:
    known = save_run(tmp_path / "known", fit="train+val")
    (known / "data").symlink_to(run / "data")
    assert calibrate(known).source == TRAINED
    (panel, *_), _ = reliability.panels(known)
    assert "the encoder knows these identities" in panel.words


def test_a_validation_image_that_cannot_be_read_is_left_out(
    run: Path, tmp_path: Path, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = calibrate(run)
    (run / "data").unlink()
    shutil.copytree(tree, run / "data")
    image = next(one for one in read(open_encoder(run).config).val.samples if one.pid >= 0)
    (run / "data" / image.image).write_bytes(b"no image")
    made = calibrate(run)
    assert (made.source, set(made.maps)) == (VALIDATION, set(whole.maps))
    assert (
        made.maps[f"{image.modality} {image.modality}"]
        != whole.maps[f"{image.modality} {image.modality}"]
    )
    assert "left out: 1 images that cannot be read, as " in caplog.text
    assert Path(image.image).name in caplog.text


def test_captions_come_with_the_images_that_they_describe(tmp_path: Path) -> None:
    """Images and captions are cut to clustered and sampled rows apart."""
    names = [f"{number}.jpg" for number in range(4)]
    images = [Sample(name, Modality.VISIBLE, 1) for name in names]
    captions = [Sample(name, Modality.TEXT, 1, caption="a red coat") for name in names]
    split = Split((*images, *captions))
    rows = _with_images(split, np.array([1, 6, 7]))
    assert rows.tolist() == [1, 2, 3, 6, 7]
    config = configuration.validate(
        {"method": "cpcl", "data": {"root": str(tmp_path), "kind": "cuhk"}}, source="test"
    )
    inputs = inputs_of(split.take(rows), tmp_path, config)
    assert inputs.owners is not None
    assert inputs.owners.tolist() == [1, 2]
    known = _within(Known(np.array([1, 6]), np.array([0, 1])), np.array([1, 2, 3]))
    assert (known.rows.tolist(), known.classes.tolist()) == ([1], [0])


def test_the_end_of_a_run_calibrates_once(run: Path, tmp_path: Path) -> None:
    assert calibrate_finished(run) == ""
    file = checkpoint.find(run) / calibrated.FILE
    written = file.stat().st_mtime_ns
    assert calibrate_finished(run) == ""
    assert file.stat().st_mtime_ns == written, "what somebody calibrated stays"
    assert "is not a folder" in calibrate_finished(save_run(tmp_path / "without data"))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        EOFError("Compressed file ended before the end-of-stream marker was reached"),
        KeyError("labels"),
    ],
)
def test_whatever_is_in_the_way_is_said_and_fails_no_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*args: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.evaluation.calibrate.features_of", fails)
    assert calibrate_finished(run) == f"{type(error).__name__}: {error}"


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
