"""Folders and manifests of one's own, written by hand; nobody's image is an image."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid_core.datasets import LAYOUTS, folder, manifest
from tests.core.datasets.by_hand import rows, touch


def test_a_flat_folder_trains_on_unknown_identities(tmp_path: Path) -> None:
    touch(tmp_path, "visible/b.JPG", "visible/a.png", "infrared/a.bmp", "visible/notes.txt")
    dataset = folder.read(tmp_path)
    assert rows(dataset.train) == [
        ("visible/a.png", "visible", -1, -1),
        ("visible/b.JPG", "visible", -1, -1),
        ("infrared/a.bmp", "infrared", -1, -1),
    ]
    assert len(dataset.test) == 0


def test_a_folder_is_one_identity_in_both_modalities_and_all_splits(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path,
        "train/visible/zoe/a.jpg",
        "train/infrared/zoe/night/b.jpg",
        "test/visible/anna/a.jpg",
        "test/infrared/anna/a.jpg",
    )
    dataset = folder.read(tmp_path)
    assert dataset.train.pids.tolist() == [1, 1]
    assert dataset.test.pids.tolist() == [0, 0]
    assert dataset.train.samples[1].image == "train/infrared/zoe/night/b.jpg"


@pytest.mark.parametrize(
    ("beside", "note"),
    [
        (
            ("visible/anna/a.jpg",),
            "not read: visible, which holds images; read are train, val and test",
        ),
        (
            ("validation/visible/a.jpg", "gallery/a/b/c.png", "notes/a.txt"),
            "not read: gallery, validation, which hold images; read are train, val and test",
        ),
        (
            ("test/thermal/anna/a.jpg",),
            "not read: test/thermal, which holds images; read are visible and infrared",
        ),
        (
            ("a.jpg", "train/b.jpg", "train/c.jpg"),
            "not read: 1 images right in the root; read are train, val and test",
        ),
        ((".cache/a.jpg", "@eaDir/a.jpg", "empty/readme.txt"), ""),
    ],
)
def test_images_beside_the_folders_that_are_read_are_told(
    tmp_path: Path, beside: tuple[str, ...], note: str
) -> None:
    touch(tmp_path, "train/visible/a.jpg", "train/infrared/a.jpg", "test/visible/a.jpg", *beside)
    dataset = folder.read(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (2, 1)
    assert dataset.notes[:1] == ((note,) if note else ())
    images = "train/b.jpg" in beside
    assert dataset.notes[1:] == (
        ("not read: 2 images right in train; read are visible and infrared",) if images else ()
    )


def test_images_beside_the_folders_of_a_tree_without_splits_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "visible/a.jpg", "infrared/a.jpg", "validation/visible/b.jpg")
    assert folder.read(tmp_path).notes == (
        "not read: validation, which holds images; read are visible and infrared",
    )


@pytest.mark.parametrize(
    ("images", "name", "meant"),
    [
        (("train/visible/a.jpg", "test/VISIBLE/a.jpg"), "test/VISIBLE", "visible"),
        (("train/visible/a.jpg", "Test/visible/a.jpg"), "Test", "test"),
        (("Train/visible/a.jpg", "Train/infrared/a.jpg"), "Train", "train"),
        (("visible/a.jpg", "Infrared/a.jpg"), "Infrared", "infrared"),
    ],
)
def test_a_folder_whose_name_differs_in_case_alone_is_refused(
    tmp_path: Path, images: tuple[str, ...], name: str, meant: str
) -> None:
    touch(tmp_path, *images)
    with pytest.raises(ValueError, match=rf"{name} holds images .*: {meant} is .*rename"):
        folder.read(tmp_path)


def test_a_link_to_a_folder_that_is_read_is_not_told(tmp_path: Path) -> None:
    touch(tmp_path, "visible/a.jpg", "infrared/a.jpg")
    (tmp_path / "Visible").symlink_to(tmp_path / "visible")
    assert folder.read(tmp_path).notes == ()


def test_a_folder_without_images_says_how_it_should_look(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    with pytest.raises(ValueError, match=r"no image below .*visible/a\.jpg"):
        folder.read(tmp_path)


MANIFEST = [
    {"image": "v/1.jpg", "modality": "Visible", "pid": 4, "camera": 2, "caption": "a man"},
    {"image": "v/1.jpg", "modality": "text", "pid": 4, "caption": "he walks"},
    {"image": "i/1.jpg", "modality": "infrared", "split": "gallery"},
    {"image": "v/2.jpg", "modality": "visible", "pid": 5, "split": "query"},
]


def write_manifest(root: Path, suffix: str, table: list[dict]) -> Path:
    names = ("image", "modality", "pid", "camera", "caption", "split")
    path = root / f"manifest.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in table] for name in names}), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table))
    else:
        lines = [",".join(str(row.get(name, "")) for name in names) for row in table]
        path.write_text("\n".join([",".join(names), *lines]))
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_manifest_reads_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = write_manifest(tmp_path, suffix, MANIFEST)
    dataset = manifest.read(tmp_path)
    assert manifest.read(path) == dataset
    assert (dataset.kind, dataset.root) == ("manifest", tmp_path)
    assert rows(dataset.train) == [
        ("v/1.jpg", "visible", 4, 2),
        ("v/1.jpg", "text", 4, 2),
        ("v/1.jpg", "text", 4, -1),
    ]
    assert [r.caption for r in dataset.train.samples] == ["", "a man", "he walks"]
    assert rows(dataset.test) == [
        ("v/2.jpg", "visible", 5, -1),
        ("i/1.jpg", "infrared", -1, -1),
    ]


def test_visible_rows_of_a_test_split_are_the_gallery(tmp_path: Path) -> None:
    table = [
        {"image": "a.jpg", "modality": "visible", "pid": 1, "caption": "a", "split": "test"},
        {"image": "b.jpg", "modality": "visible", "pid": 2, "caption": "b", "split": "test"},
    ]
    test = manifest.read(write_manifest(tmp_path, "csv", table)).test
    (trial,) = LAYOUTS["manifest"].protocol(test)
    assert [test.samples[row].caption for row in trial.query] == ["a", "b"]
    assert [test.samples[row].image for row in trial.gallery] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "thermal"}, "row 1: modality 'thermal' is none of visible, infrared, text"),
        ({"split": "dev"}, "row 1: split 'dev' is none of"),
        ({"pid": "x7"}, "row 1: pid must be a whole number"),
        ({"camera": 1.5}, "row 1: camera must be a whole number"),
        ({"image": ""}, "row 1: image is empty"),
        ({"modality": "text", "caption": " "}, "row 1: a text row needs a caption"),
        ({"caption": "", "split": "gallery"}, "queries must be of one modality"),
        ({"caption": "", "split": "test"}, "cannot stand beside query and gallery"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict, message: str) -> None:
    write_manifest(tmp_path, "jsonl", [MANIFEST[0] | change, *MANIFEST[1:]])
    with pytest.raises(ValueError, match=message):
        manifest.read(tmp_path)


def test_a_manifest_with_wrong_columns_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"expected one of manifest\.parquet"):
        manifest.read(tmp_path)
    path = tmp_path / "manifest.csv"
    path.write_text("image,mode\na.jpg,visible\n")
    with pytest.raises(ValueError, match="has no column modality; it has image, mode"):
        manifest.read(path)
    path.write_text("image,modality,person\na.jpg,visible,3\n")
    assert manifest.read(path).train.pids.tolist() == [-1]
    assert "columns person are not read" in caplog.text
    path.write_text("image,modality\n")
    with pytest.raises(ValueError, match="has no rows"):
        manifest.read(path)


def test_a_parquet_of_bytes_needs_no_image_names(tmp_path: Path) -> None:
    table = pa.table({"bytes": [b"x", b"y"], "modality": ["visible", "infrared"]})
    pq.write_table(table, tmp_path / "set.parquet")
    train = manifest.read(tmp_path / "set.parquet").train
    assert [r.image for r in train.samples] == ["set.parquet#0", "set.parquet#1"]


def test_an_identity_is_one_however_its_accents_are_coded(tmp_path: Path) -> None:
    """macOS writes an e and its accent apart, and a copy to Linux keeps them so."""
    for modality, form in (("visible", "NFC"), ("infrared", "NFD")):
        for name in ("Jos\N{LATIN SMALL LETTER E WITH ACUTE}", "anna"):
            place = tmp_path / "test" / modality / unicodedata.normalize(form, name)
            place.mkdir(parents=True)
            (place / "1.jpg").write_bytes(b"")
    samples = folder.read(tmp_path).test.samples
    assert sorted(sample.pid for sample in samples) == [0, 0, 1, 1]
    names = {(sample.pid, folder.identity_of(sample.image)) for sample in samples}
    assert names == {(0, "Jos\N{LATIN SMALL LETTER E WITH ACUTE}"), (1, "anna")}


def test_the_identity_of_an_image_stands_in_its_path() -> None:
    for image, name in (
        ("visible/a.jpg", ""),
        ("train/infrared/a.jpg", ""),
        ("visible/anna/a.jpg", "anna"),
        ("test/visible/anna/day 1/a.jpg", "anna"),
        ("visible/train/a.jpg", "train"),
    ):
        assert folder.identity_of(image) == name
