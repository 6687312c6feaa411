"""Several that write at once: every id has one row, every table is made once."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

pytest.importorskip("lancedb")

from pipelines.errors import UserError
from pipelines.retrieval import fill, gallery, one_writer
from pipelines.retrieval.database import connect
from pipelines.retrieval.gallery import Added, Facts, Gallery, tables
from pipelines.retrieval.one_writer import remove_surplus
from reid_core.types import Modality, Sample
from tests.pipelines.trained import random_rows

FACTS = Facts("f", "descriptor", 16, "/run")
WRITERS = 3


def some_rows(first: int, *, seed: int, content: str = "c", count: int = 3) -> pa.Table:
    samples = [Sample(f"{i}.jpg", Modality.VISIBLE) for i in range(first, first + count)]
    vectors = random_rows(count, 16, seed=seed)
    return fill.rows_of(samples, vectors, root="r", contents=[content] * count)


def ids_of(opened: Gallery) -> Counter[str]:
    return Counter(name for batch in opened.scan(["id"]) for name in batch["id"].to_pylist())


def add_together(place: Path, first: int) -> list[Added]:
    """Writers that add the same rows as nearly at once as can be."""
    ready = Barrier(WRITERS)

    def add(number: int) -> Added:
        opened = Gallery.open(place)
        ready.wait()
        return opened.add(some_rows(first, seed=number), more_follow=True)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(add, range(WRITERS)))


@pytest.mark.parametrize("has_locks", [True, False], ids=["folder", "without locks"])
def test_an_id_has_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    opened = Gallery.create(tmp_path / "g", FACTS)
    opened.add(some_rows(1000, seed=9))
    if not has_locks:

        @contextmanager
        def not_alone(uri: object, name: str) -> Iterator[bool]:
            yield False

        monkeypatch.setattr(gallery, "alone", not_alone)
    for first in range(0, 60, 10):
        done = add_together(tmp_path / "g", first)
        assert set(ids_of(opened).values()) == {1}
        if has_locks:
            assert sorted(one.new for one in done) == [0, 0, 3]
    assert len(opened) == 3 * 7


def test_a_writer_that_never_ends_is_waited_for_aloud_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(one_writer, "_SAID_AFTER_S", 0.0)
    monkeypatch.setattr(one_writer, "_GIVEN_UP_AFTER_S", 0.1)
    opened = Gallery.create(tmp_path / "g", FACTS)
    lock = tmp_path / "g" / f".writing-{FACTS.table}"
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"another addition to .*delete {lock}, then try again"):
            opened.add(some_rows(0, seed=0))
    assert caplog.messages == [f"another addition to {tmp_path / 'g'} is waited for"]
    assert opened.add(some_rows(0, seed=0)).new == 3


def test_of_rows_of_one_id_the_last_stays(tmp_path: Path) -> None:
    opened = Gallery.create(tmp_path / "g", FACTS)
    for number in range(3):
        opened._table.add(some_rows(number, seed=number, content=f"c{number}"))
    assert ids_of(opened) == {"0.jpg": 1, "1.jpg": 2, "2.jpg": 3, "3.jpg": 2, "4.jpg": 1}
    assert remove_surplus(opened._table, ["0.jpg", "1.jpg", "2.jpg"]) == 3
    assert ids_of(opened) == {"0.jpg": 1, "1.jpg": 1, "2.jpg": 1, "3.jpg": 2, "4.jpg": 1}
    contents = {
        row["id"]: row["content"]
        for batch in opened.scan(["id", "content"])
        for row in batch.to_pylist()
    }
    assert (contents["0.jpg"], contents["1.jpg"], contents["2.jpg"]) == ("c0", "c1", "c2")


def test_rows_that_a_version_without_locks_left_twice_are_mended(tmp_path: Path) -> None:
    opened = Gallery.create(tmp_path / "g", FACTS)
    for number in range(2):
        opened._table.add(some_rows(0, seed=number, content=f"c{number}"))
    assert set(ids_of(opened).values()) == {2}
    done = opened.add(some_rows(0, seed=5, content="new", count=1))
    assert ids_of(opened) == {"0.jpg": 1, "1.jpg": 2, "2.jpg": 2}, "those that are added again"
    assert done.total == 5
    opened.optimize()
    assert ids_of(opened) == {"0.jpg": 1, "1.jpg": 1, "2.jpg": 1}


def test_first_additions_at_once_make_one_table(tmp_path: Path) -> None:
    for number in range(3):
        place, ready = tmp_path / str(number), Barrier(WRITERS)

        def add(writer: int, place: Path = place, ready: Barrier = ready) -> Added:
            ready.wait()
            return Gallery.create(place, FACTS).add(some_rows(writer, seed=0, count=1))

        with ThreadPoolExecutor(WRITERS) as pool:
            assert [one.new for one in pool.map(add, range(WRITERS))] == [1] * WRITERS
        assert len(tables(place)) == 1
        assert len(Gallery.open(place)) == WRITERS


def test_another_process_may_have_made_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a URI nothing keeps two from making it; whoever fails takes what is there."""
    Gallery.create(tmp_path / "g", FACTS)
    database = connect(tmp_path / "g")

    def fails(*given: object, **options: object) -> None:
        raise RuntimeError("lance error: Dataset already exists")

    monkeypatch.setattr(type(database), "create_table", fails)
    gallery._make(database, FACTS)
    with pytest.raises(UserError, match=r"cannot write to .*already exists"):
        Gallery.create(tmp_path / "other", FACTS)
