"""The loaders of published data sets on trees written by hand; nobody's image is an image."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from reid_core.datasets import LAYOUTS, llcm, pedes, regdb
from reid_core.types import Modality
from tests.core.datasets.by_hand import rows, touch

VISIBLE, INFRARED, TEXT = Modality.VISIBLE, Modality.INFRARED, Modality.TEXT


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
