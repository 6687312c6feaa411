"""Images that were sent to a service stay as long as a version has their row, and no longer."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipelines.retrieval import fill, uploads
from pipelines.retrieval.gallery import Facts, Gallery
from reid_core.types import Modality, Sample

FORGOTTEN, STAYS, IN_WORDS, HALF = (f"{number:024x}" for number in range(4))


def upload(table: Gallery, folder: Path, name: str) -> None:
    """As the service does: first the image, then its row."""
    (folder / name).write_bytes(b"image")
    sample = Sample(f"uploads/{name}", Modality.VISIBLE)
    row = np.eye(1, table.facts.dim, dtype=np.float32)
    table.add(fill.rows_of([sample], row, root=str(folder.parent)))


@pytest.mark.filterwarnings("ignore:optimize")
def test_an_uploaded_image_goes_when_no_version_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    images, words = (
        Gallery.create(tmp_path, Facts("f", space, 4, "/run")) for space in ("descriptor", "joint")
    )
    upload(images, folder, FORGOTTEN)
    upload(images, folder, STAYS)
    upload(words, folder, IN_WORDS)
    (folder / "notes.txt").write_text("of somebody")
    (folder / f".{HALF}.{'a' * 12}.partial").write_bytes(b"half")
    os.utime(folder / f".{HALF}.{'a' * 12}.partial", (1, 1))
    images.remove(ids=[f"uploads/{FORGOTTEN}"])

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_ARRIVING_S", 0)
        assert uploads.remove_forgotten(tmp_path) == 1, "half an image"
    assert (folder / FORGOTTEN).exists(), "an older version has its row"
    for table in (images, words):
        table.optimize(keep_for=timedelta(0))
    assert uploads.remove_forgotten(tmp_path) == 0, "its row may be on its way"

    monkeypatch.setattr(uploads, "_ARRIVING_S", 0)
    assert uploads.remove_forgotten(tmp_path) == 1
    assert {path.name for path in folder.iterdir()} == {STAYS, IN_WORDS, "notes.txt"}


def test_a_gallery_without_uploads(tmp_path: Path) -> None:
    assert uploads.remove_forgotten(tmp_path) == uploads.remove_forgotten("s3://bucket/g") == 0
