"""What a gallery of millions needs: some images, some rows at a time."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipelines.retrieval import fill, gallery, missing, neighbors
from pipelines.retrieval.gallery import Facts, Gallery
from pipelines.retrieval.gallery_rows import Filter
from reid_core.types import Modality, Sample
from tests.pipelines.trained import random_rows


@pytest.mark.slow
def test_what_is_right_is_found_in_one_pass_over_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A few rows at a time; of rows that are equal any ten are right."""
    monkeypatch.setattr(neighbors, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(neighbors, "_BATCH_BYTES", 100 * 4 * 64)
    monkeypatch.setattr(neighbors, "_SHOWN_EVERY_S", 0.0)
    read: list[int] = []
    said: list[str] = []
    rows_of, query = neighbors._rows_of, neighbors.query

    def counted(*args: Any) -> Iterator[np.ndarray]:
        for batch in rows_of(*args):
            read.append(len(batch))
            yield batch

    def approximate(*args: Any, **options: Any) -> Any:
        assert not options.get("exact"), "a search of its own over the whole table"
        return query(*args, **options)

    monkeypatch.setattr(neighbors, "_rows_of", counted)
    monkeypatch.setattr(neighbors, "query", approximate)
    monkeypatch.setattr(neighbors, "say", said.append)
    stored = np.repeat(random_rows(100, 64, seed=3), 20, axis=0)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    samples = [Sample(f"{i}.jpg", Modality.VISIBLE) for i in range(2000)]
    opened.add(fill.rows_of(samples, stored, root="r"))
    assert sum(read) == 2000
    assert max(read) <= 100
    assert said[-1] == "the recall is measured: 2,000 of 2,000 visible vectors compared"
    assert opened.tuning.recall == 1


@pytest.fixture
def two_modalities(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Gallery, np.ndarray, np.ndarray]:
    """A gallery with an index, its rows, and which of them are infrared: far from all others."""
    monkeypatch.setattr(neighbors, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(gallery, "EXACT_UP_TO", 1000)
    infrared = np.arange(4000) % 2 == 1
    gap = random_rows(1, 64, seed=1) * np.where(infrared, 1, -1)[:, None]
    identities = np.repeat(random_rows(400, 64, seed=2), 10, axis=0)
    stored = identities + 0.3 * random_rows(4000, 64, seed=3) + gap
    stored = (stored / np.linalg.norm(stored, axis=1, keepdims=True)).astype(np.float32)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    names = np.where(infrared, Modality.INFRARED, Modality.VISIBLE)
    samples = [Sample(f"{i}.jpg", names[i]) for i in range(4000)]
    opened.add(fill.rows_of(samples, stored, root="r"))
    return opened, stored, infrared


TwoModalities = tuple[Gallery, np.ndarray, np.ndarray]


def cross_modality_recall(rows: TwoModalities) -> float:
    """At ten answers, of infrared queries among visible rows and the other way round."""
    opened, stored, infrared = rows
    hits = 0
    for i in range(0, 4000, 39):
        other = Filter(modality=Modality.VISIBLE if infrared[i] else Modality.INFRARED)
        tenth = np.sort((stored @ stored[i])[infrared != infrared[i]])[-10]
        hits += sum(
            row.similarity > tenth - 1e-5 for row in opened.search(stored[i], 10, where=other)
        )
    return hits / 10 / len(range(0, 4000, 39))


@pytest.mark.slow
def test_an_index_reaches_its_recall_across_modalities(two_modalities: TwoModalities) -> None:
    """The lists around a query hold its own modality; those of the other one are farther."""
    assert cross_modality_recall(two_modalities) >= 0.95
    how = two_modalities[0].tuning
    assert how.recall >= 0.95
    assert how.filtered_probes > how.num_probes > 0
    assert f"{how.num_probes} lists, {how.filtered_probes} under a filter" in how.described()


@pytest.mark.slow
def test_no_answer_is_missing_for_want_of_lists(two_modalities: TwoModalities) -> None:
    """However few were tuned: a search goes on until it has what was asked for."""
    opened, stored, _ = two_modalities
    where = Filter(modality=Modality.VISIBLE)
    neighbors._keep(opened._table, vars(neighbors.Tuning(1, 1, 5, 0.0)))
    assert len(opened.search(stored[1], 1000, where=where)) == 1000
    assert len(opened.search(stored[1], 2000)) == 2000


@pytest.mark.slow
def test_a_recall_that_is_not_reached_is_told(
    two_modalities: TwoModalities, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(neighbors.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(neighbors, "_REFINED", (1,))
    how = neighbors._tune(two_modalities[0]._table, recall=0.99)
    assert how.recall < 0.9
    assert f"a recall@10 of {how.recall:.3f}, not the 0.99 asked for" in said[0]


@pytest.mark.slow
def test_an_index_of_an_older_version_is_exact_under_a_filter_and_tuned_by_tidy(
    two_modalities: TwoModalities,
) -> None:
    opened, stored, _ = two_modalities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened._table.replace_field_metadata(
            "vector", {"num_probes": "8", "refined": "50", "recall": "0.98"}
        )
    assert opened.tuning.filtered_probes == 0
    assert cross_modality_recall(two_modalities) == 1
    opened.add(fill.rows_of([Sample("new.jpg", Modality.VISIBLE)], stored[:1], root="r"))
    assert opened.tuning.filtered_probes == 0, "nobody who adds an image waits for it"
    opened.optimize()
    assert opened.tuning.filtered_probes > 0


@pytest.mark.slow
def test_a_recall_that_was_asked_for_is_asked_for_ever_after(
    two_modalities: TwoModalities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever adds rows and says nothing of it, until another one is named."""
    opened, stored, _ = two_modalities
    asked: list[float] = []

    def noted(table: Any, *, recall: float) -> None:
        asked.append(recall)

    monkeypatch.setattr(neighbors, "_tune", noted)

    def add(first: int, count: int, recall: float | None = None) -> None:
        samples = [Sample(f"new/{i}.jpg", Modality.VISIBLE) for i in range(first, first + count)]
        table = fill.rows_of(samples, -stored[first : first + count], root="r")
        Gallery.open(opened._uri).add(table, recall=recall)

    add(0, 1, 0.98)
    assert asked == [0.98], "an index that is there is tuned anew"
    add(1, 1, 0.98)
    add(2, 1)
    assert asked == [0.98], "nothing has changed"
    add(3, 2000)
    assert asked == [0.98, 0.98], "a fifth of the rows is outside the index"
    add(2003, 1, 0.9)
    assert asked[2:] == [0.9]
    assert opened.tuning.num_probes > 0, "what was tuned before is not forgotten"


def test_a_recall_is_known_before_there_is_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    rows = random_rows(30, 64, seed=0)
    asked: list[float] = []
    monkeypatch.setattr(neighbors, "build", lambda table, recall: asked.append(recall))
    monkeypatch.setattr(neighbors, "EXACT_UP_TO", 20)
    samples = [Sample(f"{i}.jpg", Modality.VISIBLE) for i in range(30)]
    opened.add(fill.rows_of(samples[:10], rows[:10], root="r"), recall=0.99)
    opened.add(fill.rows_of(samples, rows, root="r"))
    assert asked == [0.99]


@pytest.mark.slow
def test_an_addition_drops_no_version(
    two_modalities: TwoModalities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that is old: the database drops what is older than a week unless told."""
    opened, stored, _ = two_modalities
    ages: list[Any] = []
    optimize = type(opened._table).optimize

    def noted(table: Any, *, cleanup_older_than: Any = None) -> None:
        ages.append(cleanup_older_than)
        optimize(table, cleanup_older_than=cleanup_older_than)

    monkeypatch.setattr(type(opened._table), "optimize", noted)
    samples = [Sample(f"new/{i}.jpg", Modality.VISIBLE) for i in range(2000)]
    opened.add(fill.rows_of(samples, -stored[:2000], root="r"))
    assert opened._table.index_stats("vector_idx").num_unindexed_rows == 0
    (age,) = ages
    assert age > timedelta(days=10_000)


def test_an_index_that_fails_takes_no_row_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made at the next addition."""
    rows = random_rows(2, 64, seed=0)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))

    def conflict(*args: Any, **options: Any) -> None:
        raise RuntimeError("lance error: Retryable commit conflict: CreateIndex")

    with monkeypatch.context() as patched:
        patched.setattr(type(opened._table), "create_index", conflict)
        added = opened.add(fill.rows_of([Sample("a.jpg", Modality.VISIBLE)], rows[:1], root="r"))
    assert (added.new, added.total) == (1, 1)
    assert "the rows were added, but not taken into the index" in caplog.text
    opened.add(fill.rows_of([Sample("b.jpg", Modality.VISIBLE)], rows[1:], root="r"))
    names = {index.name for index in opened._table.list_indices()}
    assert names == {"id_idx", "modality_idx", "camera_idx"}


def test_images_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of a source are handed to the threads at once, nor are its ids sent to a task."""
    monkeypatch.setattr(missing, "_LOOKED_AT", 10)
    taken: list[int] = []

    def samples() -> Iterator[Sample]:
        for number in range(100):
            taken.append(number)
            yield Sample(f"{number}.jpg", Modality.VISIBLE)

    results = missing.in_threads(lambda sample: int(sample.image[:-4]), samples())
    assert next(results) == 0
    assert len(taken) == 10
    assert [0, *results] == list(range(100))


def test_a_choice_of_many_images_is_small(tmp_path: Path) -> None:
    tmp_path.joinpath("list.csv").write_text("image,modality\na/b.png,visible\n")
    ids = [f"visible/camera-1/2026-11-27/{number:07d}.png" for number in range(10_000)]
    keys = np.unique(np.array([missing.key_of(name) for name in ids], np.uint64))
    chosen = missing.Chosen(tmp_path / "list.csv", keys=keys)
    assert all(chosen._has(missing.key_of(name)) for name in ids)
    assert not any(chosen._has(missing.key_of(f"other/{name}")) for name in ids)
    assert not missing.Chosen(tmp_path / "list.csv")._has(0)
    assert len(pickle.dumps(chosen)) < 9 * len(ids)


def test_sampled_queries_are_spread_over_each_modality(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the number of rows that are read at a time."""
    monkeypatch.setattr(neighbors, "_NAMES_AT_ONCE", 7)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    names = [Modality.INFRARED if i % 3 == 0 else Modality.VISIBLE for i in range(600)]
    samples = [Sample(f"{i}.jpg", name) for i, name in enumerate(names)]
    stored = random_rows(600, 64, seed=3)
    opened.add(fill.rows_of(samples, stored, root="r"))
    sampled = neighbors._sampled(opened._table)
    assert list(sampled) == ["infrared", "visible"]
    for name, (queries, ids) in sampled.items():
        column = opened._table.search().select(["id", "modality"]).to_arrow().to_pylist()
        own = [row["id"] for row in column if row["modality"] == name]
        spread = np.linspace(0, len(own) - 1, 50).astype(int)
        assert ids == [own[place] for place in spread]
        np.testing.assert_array_equal(queries, stored[[int(one[:-4]) for one in ids]])
