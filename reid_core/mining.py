"""Labels for outliers out of the pairs: what one modality left out, its partner may place.

Shapes: N pairs of an image and a caption, D feature width, M candidates, Q queries, R owners
(images). Everything is decided from the labels as they were before, by similarity and label alone,
so neither the order of the rows nor the order of the steps matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reid_core.clustering import centroids
from reid_core.types import OUTLIER

# Pairs that are compared in float64 at a time, and in float32: together they bound the memory.
_CHUNK = 8192
_PRODUCTS = 1 << 22


@dataclass(frozen=True)
class Mined:
    """Labels after mining.

    Attributes:
        labels: (N,) int64; a row that was no outlier keeps its label.
        similarity: (N,) float64 cosine of a mined row to what gave it its label; 1 for a row that
            had a label before, -inf for one that still has none.
    """

    labels: np.ndarray
    similarity: np.ndarray


def mine_nearest(
    labels: np.ndarray,
    partners: np.ndarray,
    features: np.ndarray,
    *,
    min_similarity: float | None = None,
) -> Mined:
    """Gives an outlier the label of the nearest row whose partner shares its partner's cluster.

    A row n with labels[n] = -1 and partners[n] != -1 looks at P = {m: partners[m] = partners[n],
    labels[m] != -1} and takes the label of the m in P with the largest cosine; it stays an outlier
    where P is empty. Equal cosines give the smallest label.

    Args:
        labels: (N,) int64 clusters of one side of the pairs, -1 = outlier; not changed.
        partners: (N,) int64 clusters of the other side.
        features: (N, D) unit rows of the side that `labels` belong to.
        min_similarity: smallest cosine that gives a label; None = any.

    Reconstruction: CPCL's abstract says that valuable outliers of each modality are mined through
    the pairs, not how; after the public code of CLPC.
    """
    rows = np.flatnonzero((labels != OUTLIER) & (partners != OUTLIER))
    rows = rows[np.argsort(partners[rows], kind="stable")]
    candidates = _Candidates(features[rows], labels[rows], partners[rows])
    return _mine(labels, partners, features, candidates, min_similarity)


def mine_prototype(
    labels: np.ndarray,
    partners: np.ndarray,
    features: np.ndarray,
    *,
    min_similarity: float | None = None,
) -> Mined:
    """As `mine_nearest`, but compared with the mean features of the clusters present in P.

    Args:
        labels, partners, features, min_similarity: as in `mine_nearest`; labels contiguous.

    Reconstruction: `cpcl.mining.vote=prototype`; nobody's code.
    """
    means = centroids(features, labels)
    prototypes = means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)
    both = (labels != OUTLIER) & (partners != OUTLIER)
    present = np.unique(np.stack([partners[both], labels[both]], axis=1), axis=0)
    candidates = _Candidates(prototypes[present[:, 1]], present[:, 1], present[:, 0])
    return _mine(labels, partners, features, candidates, min_similarity)


def vote(
    labels: np.ndarray, owners: np.ndarray, similarity: np.ndarray, *, num_owners: int
) -> np.ndarray:
    """One label per owner: the most frequent one among its rows; outliers have no vote.

    Args:
        labels: (N,) int64, -1 = outlier.
        owners: (N,) int64 owner of each row, for example the image of a caption.
        similarity: (N,); among equally frequent labels the one with the largest similarity wins,
            then the smallest label.
        num_owners: R.

    Returns:
        int64 (R,); -1 for an owner without a labeled row.

    Reconstruction: one label per image where its rows disagree, for CPCL.
    """
    result = np.full(num_owners, OUTLIER, dtype=np.int64)
    (rows,) = np.nonzero(labels != OUTLIER)
    if not len(rows):
        return result
    order = rows[np.lexsort((-similarity[rows], labels[rows], owners[rows]))]
    pairs = np.stack([owners[order], labels[order]], axis=1)
    pairs, first, count = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    ranked = np.lexsort((pairs[:, 1], -similarity[order[first]], -count, pairs[:, 0]))
    owner, best = np.unique(pairs[ranked, 0], return_index=True)
    result[owner] = pairs[ranked[best], 1]
    return result


def contiguous(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered 0, 1, ... in the order of their old numbers; -1 stays."""
    known = labels != OUTLIER
    result = np.full(len(labels), OUTLIER, dtype=np.int64)
    result[known] = np.unique(labels[known], return_inverse=True)[1]
    return result


@dataclass(frozen=True)
class _Candidates:
    """What a label can come from, in the order of the partners' clusters.

    Attributes:
        features: (M, D) unit rows; labels, partners: (M,), partners ascending.
    """

    features: np.ndarray
    labels: np.ndarray
    partners: np.ndarray


def _mine(
    labels: np.ndarray,
    partners: np.ndarray,
    features: np.ndarray,
    candidates: _Candidates,
    min_similarity: float | None,
) -> Mined:
    result = np.full(len(labels), OUTLIER, dtype=np.int64)
    similarity = np.where(labels == OUTLIER, -np.inf, 1.0)
    for query, near in _shortlists(labels, partners, features, candidates):
        cosine = _exact_cosines(features, query, candidates.features, near)
        heads = np.flatnonzero(np.diff(query, prepend=-1))
        best = np.maximum.reduceat(cosine, heads)
        names = candidates.labels[near]
        is_best = cosine == np.repeat(best, np.diff(heads, append=len(query)))
        winners = np.where(is_best, names, names.max() + 1)
        result[query[heads]] = np.minimum.reduceat(winners, heads)
        similarity[query[heads]] = best
    if min_similarity is not None:
        result[similarity < min_similarity] = OUTLIER
        similarity[similarity < min_similarity] = -np.inf
    return Mined(np.where(labels == OUTLIER, result, labels), similarity)


def _shortlists(
    labels: np.ndarray, partners: np.ndarray, features: np.ndarray, candidates: _Candidates
) -> Iterator[np.ndarray]:
    """Pairs (2, pairs) of an outlier and each candidate that may be its nearest.

    A float32 product, in whatever order it is summed, is off by at most D 2^-24 |x| |y|. What lies
    further below the largest than twice that, and twice again for rows that are not quite of unit
    length, cannot be the nearest. A row's pairs stand together in one part.
    """
    queries = np.flatnonzero((labels == OUTLIER) & (partners != OUTLIER))
    queries = queries[np.argsort(partners[queries], kind="stable")]
    start = np.searchsorted(candidates.partners, partners[queries], side="left")
    stop = np.searchsorted(candidates.partners, partners[queries], side="right")
    queries, start, stop = (x[stop > start] for x in (queries, start, stop))
    margin = 4 * (features.shape[1] + 8) * 2.0**-24
    pairs: list[np.ndarray] = []
    num_pairs = 0
    for first, last in _blocks(start, stop):
        product = features[queries[first:last]] @ candidates.features[start[first] : stop[first]].T
        query, near = np.nonzero(product >= product.max(axis=1, keepdims=True) - margin)
        pairs.append(np.stack([queries[first + query], start[first] + near]))
        num_pairs += len(query)
        if last == len(queries) or num_pairs > _CHUNK:
            yield np.concatenate(pairs, axis=1)
            pairs, num_pairs = [], 0


def _blocks(start: np.ndarray, stop: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of queries that have the same candidates and at most `_PRODUCTS` pairs with them."""
    edges = [*np.flatnonzero(np.diff(start, prepend=-1)).tolist(), len(start)]
    for first, last in itertools.pairwise(edges):
        step = max(1, _PRODUCTS // int(stop[first] - start[first]))
        for cut in range(first, last, step):
            yield cut, min(cut + step, last)


def _exact_cosines(
    features: np.ndarray, rows: np.ndarray, others: np.ndarray, other_rows: np.ndarray
) -> np.ndarray:
    """float64 products of pairs of rows."""
    cosine = np.empty(len(rows))
    for cut in range(0, len(rows), _CHUNK):
        part = slice(cut, cut + _CHUNK)
        own = features[rows[part]].astype(np.float64)
        # each pair's products are summed alone: the same to the last bit wherever the row stands
        cosine[part] = (own * others[other_rows[part]]).sum(axis=1)
    return cosine
