"""How the cells of a manifest are understood, whoever wrote the table."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid_core.datasets import manifest
from reid_core.datasets.cell_values import moment, whole_number
from reid_core.datasets.manifest_rows import number_tracklets, rows
from reid_core.types import Modality


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(("image,modality,pid,caption,split", *lines)))
    return path


def test_an_image_with_two_sentences_is_one_image(tmp_path: Path) -> None:
    lines = "a.png,visible,1,red coat,train", "a.png,visible,1,blue bag,train"
    train = manifest.read(listed(tmp_path, *lines, "a.png,visible,1,red coat,test")).train
    assert [(s.modality, s.caption) for s in train.samples] == [
        ("visible", ""), ("text", "red coat"), ("text", "blue bag")
    ]  # fmt: skip
    assert len(manifest.read(tmp_path).test) == 2, "another split"


@pytest.mark.parametrize(
    "second", ["./a.png,visible,9,blue bag,train", "x//a.png,text,9,blue bag,train"]
)
def test_an_image_is_one_identity_whatever_is_said_of_it(tmp_path: Path, second: str) -> None:
    first = second.split(",")[0].replace("./a", "a", 1).replace("//", "/")
    path = listed(tmp_path, f"{first},visible,1,red coat,train", second)
    with pytest.raises(ValueError, match=r"row 2: \S*a\.png is identity 9 here and 1 in row 1"):
        manifest.read(path)
    unknown = listed(tmp_path, f"{first},visible,1,,train", second.replace(",9,", ",,"))
    assert manifest.read(unknown).train.samples[0].pid == 1


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (7, 7),
        ("7", 7),
        (" 7 ", 7),
        (7.0, 7),
        ("7.0", 7),
        ("007", 7),
        (None, -1),
        ("", -1),
        ("NaN", -1),
        (float("nan"), -1),
        (-1, -1),
        (2**63 - 1, 2**63 - 1),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_whole_number_is_read_however_a_table_wrote_it(value: object, number: int) -> None:
    assert whole_number(value, "pid", "row 1") == number


@pytest.mark.parametrize(
    "value", [7.9, "7.9", -2, 2**63, "1_000", "0x7", float("inf"), True, [7], "seven", 1e300]
)
def test_anything_else_is_refused_with_the_row(value: object) -> None:
    with pytest.raises(ValueError, match="row 1: pid must be a whole number"):
        whole_number(value, "pid", "row 1")


def test_capitals_spaces_and_windows_slashes_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "SET.CSV"
    path.write_text(" Image ,MODALITY,Pid\n visible\\0.JPG , Visible , 1.0 \n")
    (row,) = rows(path)
    assert (row.image, row.modality, row.pid) == ("visible/0.JPG", Modality.VISIBLE, 1)


def test_a_missing_caption_is_no_sentence(tmp_path: Path) -> None:
    nan = float("nan")
    table = {"image": ["a.jpg", "b.jpg"], "modality": ["visible"] * 2, "caption": [nan, nan]}
    pq.write_table(pa.table({**table, "pid": [1.0, nan]}), tmp_path / "m.parquet")
    train = manifest.read(tmp_path / "m.parquet").train
    assert [(s.caption, s.pid) for s in train.samples] == [("", 1), ("", -1)]


def test_one_image_with_two_identities_is_refused_and_one_that_is_repeated_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,modality,pid\na.jpg,visible,1\nb.jpg,visible,1\na.jpg,visible,2\n")
    with pytest.raises(ValueError, match=r"row 3: a\.jpg is identity 2 here and 1 in row 1"):
        list(rows(path))
    path.write_text("image,modality,pid\n" + "a.jpg,visible,1\n" * 3)
    with caplog.at_level(logging.WARNING):
        assert len(list(rows(path))) == 3
    assert "2 rows repeat an earlier one" in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-27T14:05:30",
        " 2026-11-27 15:05:30+01:00 ",
        "1795788330",
        1795788330,
        1795788330.0,
        1795788330000,
        "1795788330000",
        datetime(2026, 11, 27, 14, 5, 30),
    ],
)
def test_a_time_is_read_however_a_table_wrote_it(value: object) -> None:
    assert moment(value, "row 1") == datetime(2026, 11, 27, 14, 5, 30, tzinfo=UTC)


@pytest.mark.parametrize("value", [None, "", "NaT", float("nan")])
def test_no_time_is_none(value: object) -> None:
    assert moment(value, "row 1") is None


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "14:05",
        "202611271405",
        "20261127",
        20261127,
        0,
        -1795788330,
        1795788330e6,
        "-",
        True,
        [3],
        float("inf"),
    ],
)
def test_no_other_time_is_read(value: object) -> None:
    with pytest.raises(ValueError, match="row 1: time must be as 2026-11-27T14:05:30"):
        moment(value, "row 1")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_time_of_another_program_stops_only_who_needs_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path, times = tmp_path / f"m.{ending}", ["14:05", "", "2026-11-27", "15:05"]
    table = [{"image": f"{n}.jpg", "modality": "visible", "time": t} for n, t in enumerate(times)]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    else:
        path.write_text("\n".join(["image,modality,time", *(",".join(r.values()) for r in table)]))
    with caplog.at_level(logging.WARNING):
        known = [row.time for row in rows(path)]
    assert known == [None, None, datetime(2026, 11, 27, tzinfo=UTC), None]
    assert caplog.text.count("2 such times are unknown") == 1
    assert "row 1: time must be" in caplog.text
    with pytest.raises(ValueError, match="row 1: time must be as"):
        list(rows(path, times=True))


def test_nanoseconds_are_cut_once(tmp_path: Path) -> None:
    """As a gallery stores them: rounded anywhere else, a row would never equal itself."""
    for zone in (None, "UTC"):
        times = pa.array([1795788330_123456_900], pa.timestamp("ns", zone))
        pq.write_table(
            pa.table({"image": ["a.jpg"], "modality": ["visible"], "time": times}),
            tmp_path / "m.parquet",
        )
        (row,) = rows(tmp_path / "m.parquet")
        assert row.time == datetime(2026, 11, 27, 14, 5, 30, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["3", "", "12"], [3, -1, 12]),
        (["b", "a", "", "b"], [1, 0, -1, 1]),
        (["c1/7", "7"], [1, 0]),
    ],
)
def test_tracks_are_their_numbers_or_counted_in_the_order_of_names(
    names: list[str], numbers: list[int]
) -> None:
    assert number_tracklets(names) == numbers


@pytest.mark.parametrize("cells", [["7", "7.0", "8"], ["cam1-a", "cam1-a", "cam2-a"]])
def test_a_tracklet_stays_with_its_sample(tmp_path: Path, cells: list[str]) -> None:
    path = tmp_path / "m.csv"
    lines = [f"{n}.jpg,infrared,{cell}" for n, cell in enumerate(cells)]
    path.write_text("\n".join(["image,modality,tracklet", *lines]))
    first, second, third = manifest.read(path).train.tracklets.tolist()
    assert first == second != third
    assert manifest.read(path).train.pids.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"image,modality\na.jpg,visible,3\n", "row 1: 3 cells"),
        ("m.csv", b"image,image,modality\n", "two columns image"),
        ("m.csv", "image,modality\na.jpg,visible\n".encode("utf-16"), "is not UTF-8 text"),
        ("m.jsonl", b'{"image": "a.jpg", "modality": "visible"}\n[1]\n', "row 2 is no JSON object"),
        ("m.jsonl", b'{"image": ["a"], "modality": "visible"}\n', "row 1: image must be text"),
        ("m.jsonl", b'{"image": "a", "modality": "visible", "pid": 1e400}', "row 1: pid must be"),
        ("m.parquet", b"PAR1 and so on", "not a readable parquet"),
        ("m.parquet", b"", "not a readable parquet"),
    ],
)
def test_a_file_that_is_none_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        manifest.read(tmp_path / name)
    assert name in str(caught.value)
