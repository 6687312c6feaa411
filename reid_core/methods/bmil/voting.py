"""How neighbors vote on BMIL's labels of either kind: rows that were clustered together.

Shapes: n rows of a modality, N of both, K neighbors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features, stacked, take
from reid_core.method import Labels
from reid_core.methods.bmil.settings import INPUTS
from reid_core.methods.refinement import voted
from reid_core.methods.sections import Refinement
from reid_core.types import OUTLIER, Modality

Votes = tuple[dict[str, np.ndarray], dict[str, float]]


def votes_of_each(
    settings: Refinement,
    features: Mapping[Modality, Features],
    labels: Labels,
    visible: np.ndarray,
    *,
    search: Search,
) -> Votes:
    """Separate labels, on which the K nearest rows of the own modality vote.

    Args:
        settings: what is wanted.
        features: per modality (n, D) unit rows, as they were clustered.
        labels: per modality (n,); -1 = none.
        visible: rows of the visible modality that were clustered; others have no vote and no label.
        search: finds the voters.

    Reference: N-ULC, both parts, within one modality.
    """
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for m, rows in _taking_part(features, visible).items():
        part = search(take(features[m], rows), settings.neighbors).rows
        neighbors = _spread(rows[part], rows, len(features[m]))
        of_side, numbers = voted(settings, m, neighbors, labels[m], labels[m])
        arrays, counts = arrays | of_side, counts | numbers
    return arrays, counts


def votes_of_both(
    settings: Refinement,
    features: Mapping[Modality, Features],
    labels: Labels,
    visible: np.ndarray,
    *,
    search: Search,
) -> Votes:
    """Joint labels, on which as many of the nearest rows of either modality vote, see above.

    Reconstruction: ours; the paper's votes are of one modality. K is rounded up to an even number.
    """
    rows, sizes = _taking_part(features, visible), [len(features[m]) for m in INPUTS]
    together = stacked([take(features[m], rows[m]) for m in INPUTS])
    is_second = np.repeat([False, True], [len(rows[m]) for m in INPUTS])
    num = settings.neighbors + settings.neighbors % 2
    num = min(num, 2 * min(len(rows[m]) for m in INPUTS))
    places = np.concatenate([rows[INPUTS[0]], sizes[0] + rows[INPUTS[1]]])
    part = search(together, num, is_second=is_second).rows
    neighbors = np.split(_spread(places[part], places, sum(sizes)), sizes[:1])
    pool = np.concatenate([labels[m] for m in INPUTS])
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for m, own in zip(INPUTS, neighbors, strict=True):
        of_side, numbers = voted(settings, m, own, labels[m], pool)
        arrays, counts = arrays | of_side, counts | numbers
    return arrays, counts


def _taking_part(
    features: Mapping[Modality, Features], visible: np.ndarray
) -> dict[Modality, np.ndarray]:
    return {
        Modality.VISIBLE: visible,
        Modality.INFRARED: np.arange(len(features[Modality.INFRARED])),
    }


def _spread(neighbors: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """(N, K) neighbors of all rows from those of some; -1, which nobody votes by, elsewhere."""
    spread = np.full((num_rows, neighbors.shape[1]), OUTLIER, dtype=np.int64)
    spread[rows] = neighbors
    return spread
