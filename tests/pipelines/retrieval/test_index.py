"""The index answers what exact search answers, within its filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import index as indexing
from pipelines.retrieval import vectors
from pipelines.retrieval.index import Index, build
from reid_core.types import Modality, Sample
from tests.pipelines.trained import random_rows

DIM = 16


def write_vectors(out: Path, rows: np.ndarray, *, dtype: str = "float32") -> Path:
    """Half visible, half infrared; cameras 1 to 4; five images per person; two parts."""
    vectors.claim(out, vectors.VectorInfo("f", "descriptor", dtype, rows.shape[1], "r", "s"), out)
    records = [
        Sample(f"{i}.jpg", (Modality.VISIBLE, Modality.INFRARED)[i % 2], i // 5, 1 + i % 4)
        for i in range(len(rows))
    ]
    half = len(rows) // 2
    for key, part in (("0", slice(None, half)), ("1", slice(half, None))):
        vectors.write_part(out, key, records[part], rows[part].astype(dtype), [])
    vectors.finish(out, {"0": half, "1": len(rows) - half}, [], len(rows))
    return out


def brute_force(rows: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray) -> list[int]:
    similarity = np.where(allowed, rows @ query, -np.inf)
    return np.argsort(-similarity, kind="stable")[:k].tolist()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return random_rows(200, DIM, seed=0)


@pytest.fixture(scope="module")
def flat(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("flat")
    built = build(write_vectors(root / "v", rows), root / "i")
    assert (built.kind, built.recall, built.num_vectors, built.dim) == ("flat", 1.0, 200, DIM)
    return Index(root / "i")


def test_flat_search_is_exact_and_sorted(flat: Index, rows: np.ndarray) -> None:
    queries = random_rows(5, DIM, seed=1)
    found = flat.search(queries, 7)
    for query, answers, similarity in zip(queries, found.rows, found.similarity, strict=True):
        assert answers.tolist() == brute_force(rows, query, 7, np.ones(200, dtype=bool))
        np.testing.assert_allclose(similarity, rows[answers] @ query, atol=1e-5)


@pytest.mark.parametrize(
    ("modality", "cameras"),
    [(Modality.INFRARED, ()), (None, (2, 3)), (Modality.VISIBLE, (3,))],
)
def test_filters_leave_what_they_name(
    flat: Index, rows: np.ndarray, modality: Modality | None, cameras: tuple[int, ...]
) -> None:
    mask = flat.mask(modality=modality, cameras=cameras)
    assert mask is not None
    number = np.arange(200)
    expected = np.ones(200, dtype=bool)
    if modality is not None:
        expected &= number % 2 == (modality == Modality.INFRARED)
    if cameras:
        expected &= np.isin(1 + number % 4, cameras)
    np.testing.assert_array_equal(mask, expected)
    query = random_rows(1, DIM, seed=2)
    answers = flat.search(query, 6, mask=mask).rows[0].tolist()
    assert answers == brute_force(rows, query[0], 6, expected)


def test_fewer_rows_than_answers(flat: Index) -> None:
    mask = np.zeros(200, dtype=bool)
    mask[[3, 5]] = True
    found = flat.search(random_rows(1, DIM, seed=3), 4, mask=mask)
    assert sorted(found.rows[0][:2].tolist()) == [3, 5]
    assert found.rows[0][2:].tolist() == [-1, -1]
    assert np.isneginf(found.similarity[0][2:]).all()


def test_a_filter_that_leaves_nothing_says_what_there_is(flat: Index) -> None:
    with pytest.raises(UserError, match=r"camera 9.*cameras 1, 2, 3, 4"):
        flat.mask(cameras=[9])


def test_rows_keep_their_names(flat: Index) -> None:
    assert flat.find("123.jpg") == 123
    assert flat.find("nobody.jpg") == -1
    assert flat.pids[123] == 24
    assert flat.modalities[123].as_py() == "infrared"


@pytest.mark.slow
def test_codes_reach_the_recall_asked_for_and_scores_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clustered vectors above the limit: IVF-PQ finds candidates, products order them."""
    monkeypatch.setattr(indexing, "_GATHERED", 0)
    rng = np.random.default_rng(0)
    centres = random_rows(100, 32, seed=4)[rng.integers(0, 100, 2600)]
    noisy = centres + 0.6 * random_rows(2600, 32, seed=5)
    rows = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    built = build(
        write_vectors(tmp_path / "v", rows, dtype="float16"), tmp_path / "i", exact_up_to=1000
    )
    assert built.kind == "ivfpq"
    assert built.recall >= 0.95
    index = Index(tmp_path / "i")
    queries = rows[::100].astype(np.float32)
    visible = index.mask(modality=Modality.VISIBLE)
    assert visible is not None
    hits = 0
    for query in queries:
        found = index.search(query[None], 10, mask=visible)
        assert visible[found.rows[0]].all()
        exact = index.vectors(found.rows[0]) @ query
        np.testing.assert_allclose(found.similarity[0], exact, atol=1e-6)
        hits += len({*found.rows[0].tolist()} & {*brute_force(rows, query, 10, visible)})
    assert hits / (10 * len(queries)) > 0.9


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    info = vectors.VectorInfo("f", "descriptor", "float32", DIM, "r", "s")
    vectors.claim(tmp_path / "v", info, tmp_path)
    with pytest.raises(UserError, match="is not complete"):
        build(tmp_path / "v", tmp_path / "i")


def test_a_lost_part_is_noticed(rows: np.ndarray, tmp_path: Path) -> None:
    out = write_vectors(tmp_path / "v", rows)
    vectors.part_files(out)[0].unlink()
    with pytest.raises(UserError, match="100 vectors instead of 200"):
        build(out, tmp_path / "i")


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crossreid index"):
        Index(tmp_path)
    with pytest.raises(UserError, match="crossreid embed"):
        build(tmp_path, tmp_path / "i")
    (tmp_path / vectors.INFO).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        build(tmp_path, tmp_path / "i")
