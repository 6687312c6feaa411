"""Approximate search: lists of codes to find candidates, exact products to order them.

Shapes: N vectors, D their width, Q queries, k answers, c candidates. Vectors stay on disk; they
are read in blocks while an index is made, and by candidates when it is asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reid_core.knn.products import faiss

_BLOCK = 65_536
_SAMPLE_QUERIES = 256
_MIN_TRAINED_ON = 16_384  # 64 for each of the 256 codes of a byte
_AT = 10  # recall is that of the first ten answers
_MARGIN = 0.02  # between the recall asked for and that of the sample it is tuned on


@dataclass(frozen=True)
class Found:
    """Answers, best first.

    Attributes:
        rows: (Q, k) int64, -1 where there are fewer than k.
        similarity: (Q, k) float32 cosines, -inf there.
    """

    rows: np.ndarray
    similarity: np.ndarray


def train(stored: np.ndarray, *, seed: int) -> Any:
    """An inverted file of about sqrt(N) lists with a byte per eight dimensions."""
    num_rows, dim = stored.shape
    num_lists = 2 ** round(math.log2(math.sqrt(num_rows)))
    num_codes = max(m for m in range(1, max(dim // 8, 1) + 1) if dim % m == 0)
    # np: without polysemous codes, whose training takes minutes and which no search here compares
    index: Any = faiss.index_factory(
        dim, f"IVF{num_lists},PQ{num_codes}np", faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = index.pq.cp.seed = seed
    rng = np.random.default_rng(seed)
    wanted = max(64 * num_lists, _MIN_TRAINED_ON)
    sample = np.sort(rng.choice(num_rows, min(num_rows, wanted), replace=False))
    index.train(stored[sample].astype(np.float32))
    for start in range(0, num_rows, _BLOCK):
        index.add(stored[start : start + _BLOCK].astype(np.float32))
    return index


def tune(
    index: Any, stored: np.ndarray, modalities: np.ndarray, *, target: float, seed: int
) -> dict[str, Any]:
    """The fewest lists, then the fewest candidates, that reach a recall on a sample of rows.

    Args:
        index: from `train`.
        stored: (N, D) vectors.
        modalities: (N,) their modalities.
        target: recall at ten answers; a little more is asked of the sample.
        seed: of the sample.

    Returns:
        num_probes, candidates and the recall reached, which is below the target only where all
        lists together do not reach it.
    """
    asked = _ask(stored, modalities, seed=seed)
    counts = np.array([c for c in (50, 100, 200, 400, 800) if c <= len(stored)] or [len(stored)])
    num_probes = 4
    while True:
        hits = np.zeros(len(counts))
        for one in asked:
            queries = stored[one.rows].astype(np.float32)
            # one more: a row may find itself
            found = candidates(index, queries, counts[-1] + 1, num_probes=num_probes, mask=one.mask)
            right = np.array([np.isin(f, t[t >= 0]) for f, t in zip(found, one.truth, strict=True)])
            hits += right.cumsum(axis=1)[:, counts - 1].sum(axis=0)
        recall = hits / sum((one.truth >= 0).sum() for one in asked)
        good = np.flatnonzero(recall >= min(target + _MARGIN, 1.0))
        if len(good) or num_probes >= index.nlist:
            best = int(good[0]) if len(good) else len(counts) - 1
            return {
                "num_probes": num_probes,
                "candidates": int(counts[best]),
                "recall": float(recall[best]),
            }
        num_probes = min(2 * num_probes, index.nlist)


@dataclass(frozen=True)
class _Asked:
    """Rows (q,) that ask for rows of a mask (N,), and their ten nearest ones (q, 10)."""

    rows: np.ndarray
    mask: np.ndarray
    truth: np.ndarray


def _ask(stored: np.ndarray, modalities: np.ndarray, *, seed: int) -> list[_Asked]:
    """Sampled rows ask as users do: for the other modality where there is one, else for all."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(stored), min(len(stored), _SAMPLE_QUERIES), replace=False))
    asked = []
    for name in np.unique(modalities[sample]):
        rows = sample[modalities[sample] == name]
        mask = modalities != name
        if not mask.any():
            mask = np.ones(len(stored), dtype=bool)
        asked.append(_Asked(rows, mask, _nearest_in_blocks(stored, rows, mask)))
    return asked


def _nearest_in_blocks(stored: np.ndarray, asking: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(q, 10) exact nearest allowed rows of some rows, not the row itself, -1 for none."""
    queries = stored[asking].astype(np.float32)
    best = Found(
        np.full((len(asking), _AT), -1, dtype=np.int64),
        np.full((len(asking), _AT), -np.inf, dtype=np.float32),
    )
    for start in range(0, len(stored), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(stored)))
        similarity = queries @ stored[rows].astype(np.float32).T
        similarity[:, ~mask[rows]] = -np.inf
        similarity[asking[:, None] == rows[None, :]] = -np.inf
        keep = min(_AT, len(rows))
        top = np.argpartition(-similarity, keep - 1, axis=1)[:, :keep]
        joined_rows = np.concatenate([best.rows, rows[top]], axis=1)
        joined = np.concatenate([best.similarity, np.take_along_axis(similarity, top, 1)], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :_AT]
        best = Found(
            np.take_along_axis(joined_rows, order, 1), np.take_along_axis(joined, order, 1)
        )
    return np.where(np.isfinite(best.similarity), best.rows, -1)


def candidates(
    index: Any, queries: np.ndarray, count: int, *, num_probes: int, mask: np.ndarray | None
) -> np.ndarray:
    """(Q, count) rows of the best codes in the lists visited, -1 where there are fewer."""
    options: dict[str, Any] = {"nprobe": num_probes}
    if mask is not None and not mask.all():
        selector: Any = faiss.IDSelectorBitmap  # its stub knows the C++ signature alone
        options["sel"] = selector(np.packbits(mask, bitorder="little"))
    # int: faiss takes no number of NumPy's
    _, rows = index.search(queries, int(count), params=faiss.SearchParametersIVF(**options))
    return rows


def rescored(queries: np.ndarray, stored: np.ndarray, candidates: np.ndarray, k: int) -> Found:
    """The k best of each query's candidates by their exact products, equal ones by row."""
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    similarity = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for i, query in enumerate(queries):
        own = np.sort(candidates[i][candidates[i] >= 0])
        exact = stored[own].astype(np.float32) @ query
        order = np.argsort(-exact, kind="stable")[:k]
        rows[i, : len(order)], similarity[i, : len(order)] = own[order], exact[order]
    return Found(rows, similarity)
