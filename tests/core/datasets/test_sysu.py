"""The SYSU-MM01 loader on a tree written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid_core.datasets import LAYOUTS, sysu
from reid_core.types import Modality


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Identity 1 trains, 12 validates, 7 tests; nobody's image is an image."""
    for camera in range(1, 7):
        for pid in (1, 7, 12):
            folder = tmp_path / f"cam{camera}" / f"{pid:04d}"
            folder.mkdir(parents=True)
            (folder / "0010.jpg").write_bytes(b"not an image")
            (folder / "0002.jpg").write_bytes(b"")
    (tmp_path / "exp").mkdir()
    for split, ids in (("train", "1\n"), ("val", "12"), ("test", "7,\n")):
        (tmp_path / "exp" / f"{split}_id.txt").write_text(ids)
    return tmp_path


def test_records_are_sorted_by_camera_id_and_file_name(root: Path) -> None:
    (root / "exp" / "train_id.txt").write_text("12,1")
    (root / "exp" / "val_id.txt").write_text("3")
    (root / "cam2" / "0003").mkdir()
    (root / "cam2" / "0003" / "0001.jpg").touch()
    train = sysu.read(root).train
    assert [r.image for r in train.samples[:4]] == [
        "cam1/0001/0002.jpg",
        "cam1/0001/0010.jpg",
        "cam1/0012/0002.jpg",
        "cam1/0012/0010.jpg",
    ]
    assert len(train) == 24
    assert train.cameras.tolist() == sorted(train.cameras)
    assert set(train.pids) == {1, 12}


def test_cameras_3_and_6_are_infrared_and_images_are_not_opened(root: Path) -> None:
    dataset = sysu.read(root)
    assert dataset.kind == "sysu"
    assert dataset.root == root
    infrared = dataset.test.rows(Modality.INFRARED)
    assert set(dataset.test.cameras[infrared]) == {3, 6}
    assert set(dataset.test.cameras[dataset.test.rows(Modality.VISIBLE)]) == {1, 2, 4, 5}
    assert (dataset.train.pids[0], dataset.val.pids[0], dataset.test.pids[0]) == (1, 12, 7)


def test_a_identity_may_be_missing_in_a_camera_and_other_files_are_ignored(root: Path) -> None:
    for name in ("0002.jpg", "0010.jpg"):
        (root / "cam5" / "0007" / name).unlink()
    (root / "cam5" / "0007").rmdir()
    (root / "cam4" / "0007" / "Thumbs.db").touch()
    test = sysu.read(root).test
    assert len(test) == 10
    assert 5 not in test.cameras


def test_a_missing_camera_is_named(root: Path) -> None:
    (root / "cam6").rename(root / "camera6")
    with pytest.raises(ValueError, match=f"{root / 'cam6'} is missing"):
        sysu.read(root)


def test_a_missing_list_is_named(root: Path) -> None:
    (root / "exp" / "val_id.txt").unlink()
    with pytest.raises(ValueError, match=r"val_id\.txt is missing"):
        sysu.read(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", r"train_id\.txt is empty"),
        ("1;2", r"train_id\.txt must hold comma-separated ids.*'1;2'"),
        ("99", r"expected e\.g\. .*cam1/0099/0001\.jpg"),
    ],
)
def test_a_wrong_list_is_named_with_what_is_wrong(root: Path, text: str, message: str) -> None:
    (root / "exp" / "train_id.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        sysu.read(root)


def test_the_reader_is_found_by_its_kind() -> None:
    assert LAYOUTS["sysu"].reader is sysu.read


def test_identities_of_no_list_are_told(root: Path) -> None:
    assert sysu.read(root).notes == ()
    (root / "exp" / "val_id.txt").write_text("1")
    (note,) = sysu.read(root).notes
    assert note == "1 identities stand in no list of exp and are not read: 0012"


def test_further_cameras_are_told(root: Path) -> None:
    (root / "cam8").mkdir()
    for name in ("cam7", "cam12"):
        (root / name / "0001").mkdir(parents=True)
    (note,) = sysu.read(root).notes
    known = ", ".join(f"cam{n}" for n in range(1, 7))
    assert note.startswith(f"cam12, cam7: not read, since the data set has {known} alone")
