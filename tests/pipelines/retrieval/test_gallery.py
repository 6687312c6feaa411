"""A gallery answers what exact search answers, grows without repeating, and loses nothing."""

from __future__ import annotations

import json
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lancedb")

from pipelines.errors import UserError
from pipelines.retrieval import (
    answer_file,
    contact_sheet,
    fill,
    gallery,
    missing,
    neighbors,
    vectors,
)
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.gallery import Facts, Gallery
from pipelines.retrieval.gallery_rows import Filter, micros, time_of
from pipelines.retrieval.search import query_by_id, search
from pipelines.retrieval.sources import Source, record_id
from reid_core.types import Modality, Sample
from tests.pipelines.trained import draw_folder, random_rows

DIM = 16
FACTS = Facts("f", "descriptor", DIM, "/run")
DAY = datetime(2026, 11, 1, tzinfo=UTC)


def rows_of(rows: np.ndarray, *, first: int = 0, content: str = "c") -> pa.Table:
    """Half visible, half infrared; cameras 1 to 4; five images per identity."""
    numbers = range(first, first + len(rows))
    samples = [
        Sample(
            f"{i}.jpg",
            (Modality.VISIBLE, Modality.INFRARED)[i % 2],
            i // 5,
            1 + i % 4,
            time=DAY + timedelta(hours=i),
        )
        for i in numbers
    ]
    return fill.rows_of(samples, rows, root="r", contents=[content] * len(rows))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return random_rows(200, DIM, seed=0)


@pytest.fixture(scope="module")
def full(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Read only."""
    opened = Gallery.create(tmp_path_factory.mktemp("gallery"), FACTS)
    assert opened.add(rows_of(rows)).new == 200
    return opened


@pytest.fixture
def small(rows: np.ndarray, tmp_path: Path) -> Gallery:
    opened = Gallery.create(tmp_path / "g", FACTS)
    opened.add(rows_of(rows[:20]))
    return opened


def nearest(rows: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray) -> list[str]:
    similarity = np.where(allowed, rows @ query, -np.inf)
    return [f"{i}.jpg" for i in np.argsort(-similarity, kind="stable")[:k]]


def test_answers_are_those_of_exact_search_with_exact_cosines(
    full: Gallery, rows: np.ndarray
) -> None:
    for query in random_rows(5, DIM, seed=1):
        hits = full.search(query, 7)
        assert [hit.id for hit in hits] == nearest(rows, query, 7, np.ones(200, dtype=bool))
        assert [hit.similarity for hit in hits] == pytest.approx(
            sorted(rows @ query, reverse=True)[:7], abs=1e-5
        )


def test_filters_are_applied_before_the_search(full: Gallery, rows: np.ndarray) -> None:
    number = np.arange(200)
    cases = {
        Filter(modality=Modality.INFRARED): number % 2 == 1,
        Filter(cameras=(2, 3)): np.isin(1 + number % 4, (2, 3)),
        Filter(modality=Modality.VISIBLE, cameras=(3,)): number % 4 == 2,
        Filter(since=DAY + timedelta(hours=190)): number >= 190,
        Filter(since=DAY + timedelta(hours=3), until=DAY + timedelta(hours=7)): (number >= 3)
        & (number <= 7),
    }
    query = random_rows(1, DIM, seed=2)[0]
    for where, allowed in cases.items():
        hits = full.search(query, 5, where=where)
        assert [hit.id for hit in hits] == nearest(rows, query, 5, allowed), str(where)


def test_more_answers_than_rows_are_all_rows(full: Gallery, rows: np.ndarray) -> None:
    assert len({hit.id for hit in full.search(rows[0], 1000)}) == 200


def test_equal_rows_again_change_nothing_and_another_content_replaces(
    small: Gallery, rows: np.ndarray
) -> None:
    again = small.add(rows_of(rows[:20]))
    assert (again.new, again.replaced, again.total) == (0, 0, 20)
    other = small.add(rows_of(rows[100:110], content="d"))
    assert (other.new, other.replaced, other.total) == (0, 10, 20)
    row = small.get("3.jpg")
    assert row is not None
    np.testing.assert_array_equal(row.vector, rows[103])
    time = DAY.replace(year=2020)
    moved = [Sample("3.jpg", Modality.INFRARED, 0, 4, time=time)]
    later = small.add(fill.rows_of(moved, rows[103:104], root="r", contents=["d"]))
    assert (later.new, later.replaced) == (0, 1), "another time alone"
    assert len(small.search(rows[0], 5, where=Filter(until=time))) == 1


def test_what_is_embedded_again_is_another_image_or_another_word_about_it(
    small: Gallery, tmp_path: Path
) -> None:
    """Of a manifest that names cameras and times."""
    images = draw_folder(tmp_path / "i", visible=3, infrared=0)
    lines = [f"visible/{i}.png,visible,{i},2026-11-0{1 + i}" for i in range(3)]

    def lacking() -> set[str]:
        (images / "list.csv").write_text("\n".join(["image,modality,camera,time", *lines]))
        chosen = missing.missing(Source(images / "list.csv"), small)
        assert chosen.num_listed == 3
        return {record_id(sample) for sample in chosen.samples()}

    assert lacking() == {f"visible/{i}.png" for i in range(3)}
    samples = list(Source(images / "list.csv").samples())
    hashes = [content_hash((images / sample.image).read_bytes()) for sample in samples]
    root = str(images.resolve())
    small.add(fill.rows_of(samples, random_rows(3, DIM, seed=9), root=root, contents=hashes))
    assert not lacking()
    lines[1] = lines[1].replace("2026", "2025")
    assert lacking() == {"visible/1.png"}
    draw_folder(images, visible=1, infrared=0)
    (images / "visible" / "2.png").write_bytes((images / "visible" / "0.png").read_bytes())
    assert lacking() == {"visible/1.png", "visible/2.png"}


def test_new_rows_are_answers_at_once_and_removed_ones_never(
    small: Gallery, rows: np.ndarray
) -> None:
    small.add(rows_of(rows[50:60], first=50))
    assert small.search(rows[55], 1)[0].id == "55.jpg"
    assert small.remove(ids=["55.jpg", "nobody.jpg"]) == 1
    assert small.search(rows[55], 1)[0].id != "55.jpg"
    assert small.remove(where=Filter(until=DAY + timedelta(hours=9))) == 10
    assert len(small) == 19
    assert small.remove(where=Filter(pids=(3,), cameras=(1, 2))) == 2, "16.jpg and 17.jpg"


@pytest.mark.filterwarnings("ignore:optimize")
def test_who_is_forgotten_is_found_no_more(
    small: Gallery, rows: np.ndarray, tmp_path: Path
) -> None:
    for name, first in (("Ada", 100), ("O'Hara", 110)):
        samples = [Sample(f"enrolled/{name}/{i}", Modality.VISIBLE) for i in range(2)]
        small.add(fill.rows_of(samples, rows[first : first + 2], root="", name=name))
    assert small.names() == {"Ada": 2, "O'Hara": 2}
    assert small.remove(where=Filter(names=("O'Hara",))) == 2
    assert small.names() == {"Ada": 2}
    small.optimize(keep_for=timedelta(0))
    states = [Gallery.open(tmp_path / "g", version=number) for number, _ in small.versions()]
    assert all(state.names() == {"Ada": 2} for state in states), "no older state keeps them"


def test_who_has_a_gallery_open_sees_what_others_change(
    small: Gallery, rows: np.ndarray, tmp_path: Path
) -> None:
    """As a service does, beside the commands of an operator."""
    other = Gallery.open(tmp_path / "g")
    other.add(rows_of(rows[50:60], first=50))
    assert small.search(rows[55], 1)[0].id == "55.jpg"
    other.remove(ids=["55.jpg"])
    assert small.search(rows[55], 1)[0].id != "55.jpg"


def test_an_older_version_answers_as_it_did(
    small: Gallery, rows: np.ndarray, tmp_path: Path
) -> None:
    before = small.versions()[-1][0]
    small.remove(ids=["7.jpg"])
    old = Gallery.open(tmp_path / "g", version=before)
    assert old.search(rows[7], 1)[0].id == "7.jpg"
    assert Gallery.open(tmp_path / "g").search(rows[7], 1)[0].id != "7.jpg"
    with pytest.raises(UserError, match="no version 999"):
        Gallery.open(tmp_path / "g", version=999)


@pytest.mark.slow
def test_an_index_reaches_the_recall_it_is_tuned_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(neighbors, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(gallery, "EXACT_UP_TO", 1000)
    centers = random_rows(200, 64, seed=3)
    noisy = np.repeat(centers, 10, axis=0) + 0.5 * random_rows(2000, 64, seed=4)
    stored = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    opened.add(rows_of(stored.astype(np.float32)))
    assert opened.tuning.num_probes > 0
    assert opened.tuning.recall >= 0.95
    hits = 0
    for query in stored[::40]:
        right = nearest(stored, query, 10, np.ones(2000, dtype=bool))
        hits += len({hit.id for hit in opened.search(query, 10)} & set(right))
    assert hits / 500 >= 0.95
    opened.add(rows_of(-stored[:3].astype(np.float32), first=5000))
    assert opened.search(-stored[1], 1)[0].id == "5001.jpg", "rows outside the index are searched"


def test_vectors_of_embed_come_in_whatever_their_age(rows: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "v"
    vectors.claim(out, vectors.VectorInfo("f", "descriptor", "float16", DIM, "r", "s"), out)
    samples = [Sample(f"{i}.jpg", Modality.VISIBLE, i, 1, tracklet=i // 3) for i in range(9)]
    with pytest.raises(UserError, match="is not complete"):
        fill.add_vectors(tmp_path / "g", out)
    vectors.write_part(out, "0", vectors.table(samples, rows[:9].astype(np.float16)))
    vectors.finish(out, ["0"], [])
    assert fill.add_vectors(tmp_path / "g", out).new == 9
    (file,) = vectors.part_files(out)
    old = pq.read_table(file).drop_columns(["tracklet", "images", "content"])
    pq.write_table(old, file)
    assert fill.add_vectors(tmp_path / "g2", out).new == 9
    row = Gallery.open(tmp_path / "g2").get("4.jpg")
    assert row is not None
    assert (row.tracklet, row.images, row.file) == (-1, 1, Path("r/4.jpg"))


def test_a_sharp_in_the_name_of_an_image_is_no_hash_of_a_sentence(
    rows: np.ndarray, tmp_path: Path
) -> None:
    out, names = tmp_path / "v", ["set.parquet#3", "visible/cam#1/a.jpg", "a.jpg"]
    vectors.claim(out, vectors.VectorInfo("f", "joint", "float32", DIM, "r", "s"), out)
    samples = [Sample(name, Modality.VISIBLE) for name in names]
    samples += [Sample(name, Modality.TEXT, caption="in red") for name in names]
    vectors.write_part(out, "0", vectors.table(samples, rows[:6]))
    vectors.finish(out, ["0"], [])
    fill.add_vectors(tmp_path / "g", out)
    opened = Gallery.open(tmp_path / "g")
    for sample in samples:
        row = opened.get(record_id(sample))
        assert row is not None
        assert row.file == Path("r", sample.image)
    as_before = fill.rows_of([Sample("set.parquet", Modality.VISIBLE)], rows[:1], root="r")
    place = as_before.schema.get_field_index("id")
    opened.add(as_before.set_column(place, "id", pa.array(names[:1])))
    assert fill.add_vectors(tmp_path / "g", out).replaced == 1, "another image of the row alone"


class TestBadInput:
    def test_vectors_of_another_encoder(self, small: Gallery, tmp_path: Path) -> None:
        other = Facts("other", "descriptor", DIM, "/run")
        with pytest.raises(UserError, match=r"cannot be compared.*--new-encoder"):
            Gallery.create(tmp_path / "g", other)
        Gallery.create(tmp_path / "g", other, new_encoder=True)
        assert len(Gallery.open(tmp_path / "g", fingerprint="f")) == 20
        assert len(Gallery.open(tmp_path / "g")) == 0, "the newest is searched"
        Gallery.create(tmp_path / "g", Facts("words", "joint", DIM, "/run"))
        assert (
            Gallery.open(tmp_path / "g").facts
            == Gallery.open(tmp_path / "g", space="descriptor").facts
        )

    def test_a_gallery_of_a_newer_version(
        self, small: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gallery, "FORMAT", 0)
        with pytest.raises(UserError, match="newer version"):
            Gallery.open(tmp_path / "g")

    def test_a_full_disk_loses_nothing(self, small: Gallery, tmp_path: Path) -> None:
        """No file may grow beyond some bytes for a moment, as on a disk that is full."""
        rows = rows_of(random_rows(5000, DIM, seed=1), first=1000)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(UserError, match="nothing was added"):
                small.add(rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert len(Gallery.open(tmp_path / "g")) == 20

    def test_two_writers_at_once_both_write(self, small: Gallery, tmp_path: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(add_some, [tmp_path / "g"] * 2, [100, 500]))
        assert len(Gallery.open(tmp_path / "g")) == 20 + 2 * 30

    def test_an_empty_gallery(self, rows: np.ndarray, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is empty"):
            Gallery.create(tmp_path, FACTS).search(rows[0], 3)

    def test_no_row_is_left(self, small: Gallery, rows: np.ndarray) -> None:
        with pytest.raises(UserError, match=r"no row is of camera 9; .* of cameras 1, 2, 3, 4"):
            small.search(rows[0], 3, where=Filter(cameras=(9,)))

    def test_what_is_no_gallery(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is no gallery"):
            Gallery.open(tmp_path / "nothing")
        with pytest.raises(UserError, match="holds no vectors"):
            Gallery.open(tmp_path)

    def test_rows_that_are_no_unit_vectors(self, small: Gallery, rows: np.ndarray) -> None:
        with pytest.raises(UserError, match=r"vector of 1\.jpg has length"):
            small.add(rows_of(rows[:3] * [[1], [np.nan], [1]]))
        with pytest.raises(UserError, match="8 numbers"):
            small.add(rows_of(random_rows(3, 8, seed=0)))

    def test_a_quote_in_an_id_is_no_condition(self, small: Gallery) -> None:
        assert small.get("' OR 'a' = 'a") is None
        assert small.remove(ids=["' OR 'a' = 'a"]) == 0

    def test_a_filter_that_says_nothing_removes_nothing(self, small: Gallery) -> None:
        for says_nothing in (lambda: Filter(names=("",)), Filter):
            with pytest.raises(UserError, match=r"is empty|nothing was removed"):
                small.remove(where=says_nothing())
        assert small.remove() == 0
        assert len(small) == 20

    def test_a_name_that_leads_out_of_its_folder(
        self, small: Gallery, rows: np.ndarray, tmp_path: Path
    ) -> None:
        """Its row is an answer as any other, without an image."""
        sample = Sample("../../etc/passwd", Modality.VISIBLE)
        small.add(fill.rows_of([sample], rows[:1], root="/srv/images"))
        row = small.get("../../etc/passwd")
        assert row is not None
        assert row.file is None, "nobody is shown what lies there"
        query = query_by_id(small, row.id)
        assert query is not None
        assert query.image is None
        hits = search(small, replace(query, id=""), top=3)
        (first,) = [hit for hit in hits if hit.id == row.id]
        assert first.image is None
        for name in ("answers.json", "answers.csv"):
            answer_file.write(tmp_path / name, query, [first])
        assert json.loads((tmp_path / "answers.json").read_text())[0]["image"] is None
        for name in ("sheet.html", "sheet.png"):
            contact_sheet.write(tmp_path / name, query, [first], note="")

    def test_a_time_is_compared_as_it_is_stored(self) -> None:
        late = datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
        stored = pa.array([late], pa.timestamp("us", "UTC")).cast(pa.int64())[0].as_py()
        assert micros(late) == stored

    def test_a_camera_that_no_row_can_have(self) -> None:
        with pytest.raises(UserError, match="camera 1099511627776: numbers end at 2147483647"):
            Filter(cameras=(3, 2**40))

    def test_a_time_that_is_none(self) -> None:
        with pytest.raises(UserError, match="--since yesterday"):
            time_of("yesterday", "--since")


def add_some(folder: Path, first: int) -> None:
    """Three transactions."""
    for step in range(3):
        rows = random_rows(10, DIM, seed=first + step)
        Gallery.open(folder).add(rows_of(rows, first=first + 10 * step))
