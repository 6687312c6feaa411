"""Watching a folder: who is on images that arrive, how surely, and what no watch may end of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipelines.evaluation.calibrated import PSEUDO, Calibrated
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.retrieval.fill import enroll
from pipelines.retrieval.gallery import Facts, Gallery
from pipelines.retrieval.gallery_rows import Filter
from pipelines.retrieval.watch import watch
from reid_core.calibration import Calibration, fit
from reid_core.types import Modality
from tests.pipelines.trained import draw_folder, save_run

COSINES = np.linspace(-1, 1, 400)
FITTED = fit(COSINES, COSINES > -0.9)
GRADED = Calibration((-1.0, 1.0), (0.1, 0.9), prior=0.1, kind="logistic")
KNOWN = Calibrated("", PSEUDO, {"visible visible": FITTED}, {}, {})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return open_encoder(save_run(tmp_path_factory.mktemp("trained")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "images", visible=4, infrared=0)


@pytest.fixture
def enrolled(loaded: LoadedEncoder, images: Path, tmp_path: Path) -> Gallery:
    """Ada with two images, Bob with one, all visible."""
    dim = loaded.encoder.feature_dim
    opened = Gallery.create(tmp_path / "g", Facts(loaded.fingerprint, "descriptor", dim, "/run"))
    for name, numbers in (("Ada", (0, 1)), ("Bob", (2,))):
        files = [images / "visible" / f"{number}.png" for number in numbers]
        enroll(opened, loaded, name, files, Modality.VISIBLE)
    return opened


def looks(enrolled: Gallery, loaded: LoadedEncoder, folder: Path, **options: Any) -> Iterator[str]:
    """Two of them."""
    options = {"calibrated": KNOWN, "min_probability": 0.0, "every_s": 0, "rounds": 2} | options
    return watch(enrolled, loaded, folder, **options)


@pytest.mark.parametrize(("prior", "of_each"), [(None, 0.1), (0.5, 0.25)])
def test_the_prior_is_shared_out_among_the_enrolled(
    enrolled: Gallery, loaded: LoadedEncoder, images: Path, prior: float | None, of_each: float
) -> None:
    """Two identities, whose three rows do not count."""
    known = Calibrated("", "test", {"visible visible": GRADED}, {}, {}, prior)
    lines = list(looks(enrolled, loaded, images, calibrated=known))
    assert len(lines) == 4
    for line in map(json.loads, lines):
        right = float(GRADED(line["similarity"], prior=of_each))
        assert line["probability"] == pytest.approx(right, abs=1e-3)


def test_a_watch_goes_on_when_the_last_identity_is_removed(
    enrolled: Gallery, loaded: LoadedEncoder, images: Path
) -> None:
    lines = looks(enrolled, loaded, images)
    assert json.loads(next(lines))["name"] == "Ada"
    enrolled.remove(where=Filter(enrolled=True))
    assert not list(lines)


def test_a_watch_passes_over_what_cannot_be_listed_and_says_so_once(
    enrolled: Gallery, loaded: LoadedEncoder, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe and a name that is not UTF-8, before the images in the order of names."""
    os.mkfifo(images / "visible" / "+.png")
    Path(os.fsdecode(os.fsencode(images / "visible") + b"/!\xdf.png")).write_bytes(b"")
    lines = list(looks(enrolled, loaded, images, rounds=3))
    assert [json.loads(line)["image"] for line in lines] == [f"visible/{i}.png" for i in range(4)]
    said = [record.message for record in caplog.records if "passed over" in record.message]
    assert len(said) == 2
    assert "is not UTF-8" in said[0]
    assert "+.png is no regular file" in said[1]


def test_a_watch_goes_on_when_a_folder_goes_while_it_is_listed(
    enrolled: Gallery,
    loaded: LoadedEncoder,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As that of a track does, which a tracker clears away."""
    track = images / "visible" / "000017"
    track.mkdir()
    scandir = os.scandir

    def cleared(path: Any) -> Any:
        if path == track and track.exists():
            track.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", cleared)
    assert len(list(looks(enrolled, loaded, images))) == 4
    assert f"passed over: {track} cannot be listed" in caplog.text


def test_modalities_that_can_never_match_are_told_at_the_start(
    enrolled: Gallery, loaded: LoadedEncoder, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after pseudo-labels without pairs of both."""
    list(looks(enrolled, loaded, images))
    (said,) = [record.message for record in caplog.records]
    assert "images that are infrared and visible: the calibration, fitted on pseudo-labels" in said
    assert "crossreid calibrate RUN --labels val" in said
    caplog.clear()
    list(looks(enrolled, loaded, images, modality=Modality.VISIBLE))
    assert not caplog.records, "only visible images arrive"
