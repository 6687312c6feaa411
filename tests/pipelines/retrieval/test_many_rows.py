"""What a gallery of millions needs: some images, some rows at a time."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipelines.retrieval import fill, missing, neighbors
from pipelines.retrieval.gallery import Facts, Gallery
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
    all_rows, query = neighbors._all_rows, neighbors.query

    def counted(table: Any) -> Iterator[np.ndarray]:
        for batch in all_rows(table):
            read.append(len(batch))
            yield batch

    def approximate(*args: Any, **options: Any) -> Any:
        assert not options.get("exact"), "a search of its own over the whole table"
        return query(*args, **options)

    monkeypatch.setattr(neighbors, "_all_rows", counted)
    monkeypatch.setattr(neighbors, "query", approximate)
    monkeypatch.setattr(neighbors, "say", said.append)
    stored = np.repeat(random_rows(100, 64, seed=3), 20, axis=0)
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 64, "/run"))
    samples = [Sample(f"{i}.jpg", Modality.VISIBLE) for i in range(2000)]
    opened.add(fill.rows_of(samples, stored, root="r"))
    assert sum(read) == 2000
    assert max(read) <= 100
    assert said[-1] == "the recall is measured: 2,000 of 2,000 vectors compared"
    assert opened.tuning.recall == 1


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
