"""What counts as an image of a tree, wherever trees are listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reid_core.datasets import folder
from reid_core.datasets.files import ImageFiles
from tests.core.datasets.by_hand import touch


def test_images_come_folder_by_folder_in_the_order_of_names_whatever_their_suffixes_case(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "b.PNG", "a/z.jpg", "a/c/d.TIFF", "notes.txt", "c.jpeg")
    images = list(ImageFiles(tmp_path).below())
    assert images == ["a/c/d.TIFF", "a/z.jpg", "b.PNG", "c.jpeg"]
    assert ImageFiles(tmp_path).directly_in("a") == ["a/z.jpg"]
    assert list(ImageFiles(tmp_path).below("none")) == ImageFiles(tmp_path).directly_in("x") == []


def test_a_linked_folder_counts_like_any_other_and_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "visible/1/a.jpg")
    touch(tmp_path, "elsewhere/b.jpg")
    (root / "visible/2").symlink_to(tmp_path / "elsewhere")
    (root / "visible/3").symlink_to(tmp_path / "elsewhere")
    (root / "visible/4").symlink_to(root / "visible/1")
    files = ImageFiles(root)
    assert list(files.below()) == ["visible/1/a.jpg", "visible/2/b.jpg"]
    (note,) = files.notes()
    assert "2 linked folders" in note
    assert "visible/3, visible/4" in note


def test_a_linked_folder_around_another_one_lists_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "pool/p1/a.jpg", "pool/p2/b.jpg", "root/c.jpg")
    (tmp_path / "root/1").symlink_to(tmp_path / "pool/p1")
    (tmp_path / "root/2").symlink_to(tmp_path / "pool")
    files = ImageFiles(tmp_path / "root")
    assert sorted(files.below()) == ["1/a.jpg", "2/p2/b.jpg", "c.jpg"]
    assert "listed by another path (2/p1)" in files.notes()[0]


@pytest.mark.parametrize("target", [".", "visible", "/"])
def test_a_loop_of_links_ends_and_is_named(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "visible/a.jpg")
    (tmp_path / "visible/again").symlink_to(tmp_path / target)
    files = ImageFiles(tmp_path)
    assert list(files.below()) == ["visible/a.jpg"]
    assert "visible/again" in files.notes()[0]


def test_what_tools_leave_behind_is_no_image_and_no_identity(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "visible/anna/1.jpg",
        "visible/anna/._1.jpg",
        "visible/.ipynb_checkpoints/1-checkpoint.jpg",
        "visible/@eaDir/1.jpg/thumb.jpg",
        "visible/__MACOSX/1.jpg",
        "infrared/anna/.hidden.png",
    )
    dataset = folder.read(tmp_path)
    assert [sample.image for sample in dataset.train.samples] == ["visible/anna/1.jpg"]
    assert dataset.train.pids.tolist() == [0]
    (note,) = dataset.notes
    assert note.startswith("passed over: 5 hidden files and folders of tools")
    assert ".ipynb_checkpoints" in note


def test_folders_where_images_are_expected_are_told_if_they_hold_some(tmp_path: Path) -> None:
    touch(tmp_path, "cam1/0001/a.jpg", "cam1/0001/more/b.jpg", "cam1/0001/lists/b.txt")
    files = ImageFiles(tmp_path)
    assert files.directly_in("cam1/0001") == ["cam1/0001/a.jpg"]
    assert files.notes() == (
        "not read: 1 folders within those of identities that hold images (cam1/0001/more)",
    )


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "visible").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "visible") + b"/Stra\xdfe.jpg")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"Stra\\xdfe\.jpg in visible is not UTF-8"):
        folder.read(tmp_path)


def test_a_pipe_that_is_called_an_image_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "visible/a.jpg")
    os.mkfifo(tmp_path / "visible/x.png")
    with pytest.raises(ValueError, match=r"visible/x\.png is no regular file"):
        folder.read(tmp_path)
    (tmp_path / "visible/x.png").unlink()
    (tmp_path / "visible/x.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"visible/x\.png is no regular file"):
        folder.read(tmp_path)


def test_what_is_refused_can_be_passed_over(tmp_path: Path) -> None:
    """And named to whoever asked for it; what comes after it is listed."""
    touch(tmp_path, "visible/a.jpg", "visible/z.jpg")
    os.mkfifo(tmp_path / "visible/m.png")
    refused: list[ValueError] = []
    listed = list(ImageFiles(tmp_path, refused=refused.append).below())
    assert listed == ["visible/a.jpg", "visible/z.jpg"]
    (error,) = refused
    assert "visible/m.png is no regular file" in str(error)


def test_a_link_to_nowhere_stays_listed_so_that_whoever_reads_it_names_it(tmp_path: Path) -> None:
    touch(tmp_path, "visible/a.jpg")
    (tmp_path / "visible/b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert len(folder.read(tmp_path).train) == 2


def test_cameras_that_a_data_set_does_not_have_are_told_if_they_hold_something(
    tmp_path: Path,
) -> None:
    for name in ("cam1/0001", "cam2", "cam10/0001", "camera"):
        (tmp_path / "test_nir" / name).mkdir(parents=True)
    files = ImageFiles(tmp_path)
    (note,) = files.further_cameras("test_nir", (1, 4))
    assert note.startswith("test_nir/cam10: not read, since the data set has cam1, cam4 alone")
    assert not list(files.further_cameras("test_nir", (1, 10)))
    assert not list(files.further_cameras("nowhere", (1,)))
