"""Images that are nearly the same: rows whose cosine is above a threshold, as sets."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from reid_core.knn.search import nearest

_NEIGHBORS = 20  # that a row is compared with; longer bursts hang together as chains


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
    result = nearest(features, min(_NEIGHBORS, len(features)))
    rows, places = np.nonzero(result.similarity >= above)
    graph = coo_matrix(
        (np.ones(len(rows)), (rows, result.rows[rows, places])), (len(features),) * 2
    )
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((one for one in sets if len(one) > 1), key=lambda one: int(one[0]))
