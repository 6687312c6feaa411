"""The loaders on trees written by hand; nobody's image is an image."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid_core.datasets import LAYOUTS, folder, llcm, manifest, pedes, regdb
from reid_core.types import Modality, Split

VISIBLE, INFRARED, TEXT = Modality.VISIBLE, Modality.INFRARED, Modality.TEXT


def touch(root: Path, *images: str) -> None:
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(b"not an image")


def rows(split: Split) -> list[tuple]:
    return [(r.image, str(r.modality), r.pid, r.camera) for r in split.samples]


def test_every_kind_has_a_reader_a_protocol_and_a_headline() -> None:
    kinds = {"sysu", "regdb", "llcm", "cuhk", "icfg", "rstp", "folder", "manifest"}
    assert set(LAYOUTS) == kinds
    assert all(name == layout.name for name, layout in LAYOUTS.items())


@pytest.fixture
def thermal(tmp_path: Path) -> Path:
    """RegDB of three identities; identity 2 trains in trial 1 and identity 10 in trial 7."""
    for name in ("Visible", "Thermal"):
        touch(tmp_path, *(f"{name}/{pid}/{name[0].lower()}_{pid}.bmp" for pid in (2, 10, 30)))
    (tmp_path / "idx").mkdir()
    for trial, train, test in ((1, [2], [30, 10]), (7, [10], [2, 30])):
        for split, pids in (("train", train), ("test", test)):
            for list_name, name in (("visible", "Visible"), ("thermal", "Thermal")):
                lines = [
                    f"{name}/{pid}/{name[0].lower()}_{pid}.bmp {label}\n"
                    for label, pid in enumerate(pids)
                ]
                path = tmp_path / "idx" / f"{split}_{list_name}_{trial}.txt"
                path.write_text("".join(lines))
    return tmp_path


def test_regdb_ids_are_folders_because_labels_start_again_in_every_list(thermal: Path) -> None:
    dataset = regdb.read(thermal)
    assert rows(dataset.train) == [
        ("Visible/2/v_2.bmp", "visible", 2, 1),
        ("Thermal/2/t_2.bmp", "infrared", 2, 2),
    ]
    assert dataset.test.pids.tolist() == [30, 10, 30, 10]
    assert len(dataset.val) == 0
    assert regdb.read(thermal, trial=7).train.pids.tolist() == [10, 10]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_visible_1", None, r"train_visible_1\.txt is missing: it lists the images"),
        ("train_visible_1", "\n", r"train_visible_1\.txt is empty"),
        ("test_thermal_1", "Thermal/2.bmp 1\n", r"line 1: 'Thermal/2\.bmp 1' is not like"),
        ("test_thermal_1", "Thermal/2/t.bmp\n", r"line 1: .* is not like 'Thermal/12"),
        ("test_thermal_1", "Thermal/10/a.bmp 0\nThermal/30/a.bmp 0\n", "line 2: label 0 and"),
    ],
)
def test_regdb_lists_are_named_with_what_is_wrong(
    thermal: Path, name: str, text: str | None, message: str
) -> None:
    path = thermal / "idx" / f"{name}.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=message):
        regdb.read(thermal)


def test_regdb_has_ten_trials_and_three_folders(thermal: Path) -> None:
    with pytest.raises(ValueError, match=r"trial=11 is unknown: .*1 to 10"):
        regdb.read(thermal, trial=11)
    (thermal / "Thermal").rename(thermal / "thermal")
    with pytest.raises(ValueError, match=r"Thermal is missing: a RegDB root holds"):
        regdb.read(thermal)


def test_regdb_tells_of_identities_that_stand_in_no_list(thermal: Path) -> None:
    assert regdb.read(thermal).notes == ()
    touch(thermal, "Visible/44/v.bmp", "Thermal/idx/t.bmp")
    assert regdb.read(thermal).notes == (
        "1 identities stand in no list of idx for trial 1 and are not read: 44",
    )


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """LLCM: identity 1 trains, identities 3 and 12 are tested."""
    lists = {"vis": ["vis/0001/0001_c03_s1_f2_vis.jpg 0"], "nir": ["nir/0001/odd.jpg 0"]}
    (tmp_path / "idx").mkdir()
    for name, lines in lists.items():
        (tmp_path / "idx" / f"train_{name}.txt").write_text("\n".join(lines))
    (tmp_path / "idx" / "test_id.txt").write_text("12,3\n")
    touch(
        tmp_path,
        "test_vis/cam3/0012/b.jpg",
        "test_vis/cam3/0012/a.jpg",
        "test_vis/cam9/0003/a.jpg",
        "test_vis/cam9/0099/a.jpg",
        "test_nir/cam3/0012/a.jpg",
        "test_nir/cam4/0003/a.jpg",
    )
    return tmp_path


def test_llcm_test_rows_are_sorted_and_camera_3_has_no_infrared(dark: Path) -> None:
    dataset = llcm.read(dark)
    assert rows(dataset.test) == [
        ("test_vis/cam3/0012/a.jpg", "visible", 12, 3),
        ("test_vis/cam3/0012/b.jpg", "visible", 12, 3),
        ("test_vis/cam9/0003/a.jpg", "visible", 3, 9),
        ("test_nir/cam4/0003/a.jpg", "infrared", 3, 4),
    ]
    assert rows(dataset.train) == [
        ("vis/0001/0001_c03_s1_f2_vis.jpg", "visible", 1, 3),
        ("nir/0001/odd.jpg", "infrared", 1, -1),
    ]


def test_llcm_tells_of_cameras_that_it_does_not_have(dark: Path) -> None:
    (note,) = (note for note in llcm.read(dark).notes if "cam1" in note)
    assert note.startswith("test_nir/cam3: not read, since the data set has cam1, cam2, cam4,")


def test_llcm_tells_of_identities_that_stand_in_no_list(dark: Path) -> None:
    (note,) = (note for note in llcm.read(dark).notes if "no list" in note)
    assert note == "1 identities stand in no list of idx and are not read: 0099"


def test_llcm_names_what_is_missing(dark: Path) -> None:
    (dark / "idx" / "test_id.txt").write_text("99")
    with pytest.raises(ValueError, match=r"no infrared image .*test_nir/cam1/0099"):
        llcm.read(dark)
    (dark / "test_nir").rename(dark / "nir_test")
    with pytest.raises(ValueError, match=r"test_nir is missing: an LLCM root holds"):
        llcm.read(dark)


def pedes_tree(root: Path, name: str, entries: object) -> Path:
    path = root / name
    (path.parent / "imgs").mkdir(parents=True)
    path.write_text(json.dumps(entries))
    return root


def test_cuhk_gives_an_image_once_and_every_caption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"processed_tokens": [["a"]], "id": 7}
    pedes_tree(
        tmp_path,
        "CUHK-PEDES/reid_raw.json",
        [
            entry
            | {"split": "Train", "file_path": "cam_a/1.png", "captions": ["one", " ", "two "]},
            entry | {"split": "test", "file_path": "Market/2.jpg", "captions": ["", "three"]},
            entry | {"split": "train", "file_path": "cam_b/3.jpg", "captions": []},
        ],
    )
    with caplog.at_level(logging.WARNING):
        train = pedes.read_cuhk(tmp_path).train
    assert rows(train) == [
        ("CUHK-PEDES/imgs/cam_a/1.png", "visible", 7, -1),
        ("CUHK-PEDES/imgs/cam_b/3.jpg", "visible", 7, -1),
        ("CUHK-PEDES/imgs/cam_a/1.png", "text", 7, -1),
        ("CUHK-PEDES/imgs/cam_a/1.png", "text", 7, -1),
    ]
    assert [r.caption for r in train.samples] == ["", "", "one", "two"]
    assert "2 empty captions were left out" in caplog.text


def test_icfg_takes_the_split_from_the_list_and_not_from_the_folder(tmp_path: Path) -> None:
    pedes_tree(
        tmp_path,
        "ICFG-PEDES/ICFG_PEDES.json",
        [
            {"split": "train", "file_path": "test/0001/a.jpg", "captions": ["a"], "id": 0},
            {"split": "test", "file_path": "train/0002/b.jpg", "captions": ["b"], "id": 3102},
        ],
    )
    dataset = pedes.read_icfg(tmp_path)
    assert dataset.train.samples[0].image == "ICFG-PEDES/imgs/test/0001/a.jpg"
    assert dataset.test.pids.tolist() == [3102, 3102]
    assert len(dataset.val) == 0


def test_rstp_reads_img_path_and_the_camera_in_it(tmp_path: Path) -> None:
    entry = {"img_path": "0000_c14_0031.jpg", "captions": ["a", "b"], "id": 0}
    splits = [entry | {"split": split} for split in ("train", "val", "test")]
    pedes_tree(tmp_path, "RSTPReid/data_captions.json", splits)
    val = pedes.read_rstp(tmp_path).val
    assert rows(val)[0] == ("RSTPReid/imgs/0000_c14_0031.jpg", "visible", 0, 14)
    assert val.rows(TEXT).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train": []}, "must hold one list"),
        ([{"split": "train", "captions": [], "id": 1}], "object 0 must have .*file_path"),
        (
            [{"split": "dev", "captions": [], "id": 1, "file_path": "a"}],
            "object 0: split 'dev' is none of train, val, test",
        ),
        (
            [{"split": "train", "captions": "a", "id": 1, "file_path": "a"}],
            "captions must be a list",
        ),
        ([{"split": "train", "captions": [], "id": 1, "file_path": "a"}], 'no object .*"test"'),
    ],
)
def test_a_wrong_json_is_named(tmp_path: Path, entries: object, message: str) -> None:
    pedes_tree(tmp_path, "CUHK-PEDES/reid_raw.json", entries)
    with pytest.raises(ValueError, match=message):
        pedes.read_cuhk(tmp_path)


def test_a_missing_or_cut_json_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reid_raw\.json is missing: the root is the folder"):
        pedes.read_cuhk(tmp_path)
    pedes_tree(tmp_path, "RSTPReid/data_captions.json", [])
    (tmp_path / "RSTPReid" / "data_captions.json").write_text('[{"id": 1')
    with pytest.raises(ValueError, match="not a complete JSON file"):
        pedes.read_rstp(tmp_path)
    (tmp_path / "RSTPReid" / "imgs").rmdir()
    with pytest.raises(ValueError, match="imgs is missing"):
        pedes.read_rstp(tmp_path)


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
