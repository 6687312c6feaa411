"""Images that are nearly the same: rows whose cosine is above a threshold, as sets."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from reid_core.knn.duplicates import find_equal_rows
from reid_core.knn.search import nearest

_NEIGHBORS = 20  # of each row at first
_PRODUCTS = 1 << 24  # held at a time where more rows are near


def near_duplicates(features: np.ndarray, *, above: float) -> list[np.ndarray]:
    """Sets of rows that hang together by cosines above a threshold.

    Args:
        features: (N, D) unit rows of images that one encoder embeds alike.
        above: the threshold, in (0, 1].

    Returns:
        Sets of two rows or more, each rising, in the order of their first rows.

    Raises:
        ValueError: a threshold outside (0, 1].
    """
    if not 0 < above <= 1:
        raise ValueError(f"near-duplicates above {above:g}: a cosine above 0 and up to 1")
    if len(features) < 2:
        return []
    equal = find_equal_rows(np.asarray(features, dtype=np.float32))
    labels = _components(features[equal.first], above)[equal.member_of]
    order = np.argsort(labels, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((one for one in sets if len(one) > 1), key=lambda one: int(one[0]))


def representatives(features: np.ndarray, *, above: float) -> list[tuple[int, np.ndarray]]:
    """Rows that stand for others, each with those that are near enough to it.

    A set of `near_duplicates` hangs together by steps, and its ends may be nothing alike. Here the
    first row that is left stands for all that are left and near to it itself, until none is.

    Args:
        features, above: see `near_duplicates`.

    Returns:
        A row, and the rising rows whose cosine to it is above the threshold, one or more; rows that
        stand for none are not among them.

    Raises:
        ValueError: a threshold outside (0, 1].
    """
    result = []
    for rows in near_duplicates(features, above=above):
        while len(rows) > 1:
            first, rest = features[rows[0]], rows[1:]
            is_near = features[rest] @ first >= above
            if above == 1:  # products of equal rows round
                is_near |= (features[rest] == first).all(axis=1)
            if is_near.any():
                result.append((int(rows[0]), rest[is_near]))
            rows = rest[~is_near]
    return sorted(result, key=lambda one: one[0])


def _components(rows: np.ndarray, above: float) -> np.ndarray:
    """(U,) number of the set of each of U distinct rows."""
    result = nearest(rows, min(_NEIGHBORS, len(rows)))
    is_near = result.similarity >= above
    asked, places = np.nonzero(is_near)
    labels = _connected(asked, result.rows[asked, places], len(rows))
    bursts = np.flatnonzero(is_near.all(axis=1))  # rows that may have further ones
    edges = [np.empty((0, 2), dtype=np.int64)]
    for block in np.array_split(bursts, 1 + len(bursts) * len(rows) // _PRODUCTS):
        asked, near = np.nonzero(rows[block] @ rows.T >= above)
        pairs = np.stack([labels[block[asked]], labels[near]], axis=1)
        edges.append(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))
    between = np.concatenate(edges)
    sets: np.ndarray = _connected(between[:, 0], between[:, 1], int(labels.max()) + 1)[labels]
    return sets


def _connected(first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(first)), (first, second)), (num, num))
    labels: np.ndarray = connected_components(graph, directed=False)[1]
    return labels
