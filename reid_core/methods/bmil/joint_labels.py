"""Joint labels of BMIL: one clustering of both modalities, or clusters of each that are paired.

Only the clustering is the paper's; pairs are ours: they keep every image that its own modality's
clustering keeps, where a joint clustering leaves many out, and purer clusters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reid_core import association, clustering, matching
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features, stacked, take
from reid_core.methods.bmil.labels import spread_labels
from reid_core.methods.bmil.settings import INPUTS, Clustering
from reid_core.types import OUTLIER, Modality

Labels = dict[Modality, np.ndarray]  # of both modalities, made here


def separate_clusters(
    settings: Clustering,
    features: Mapping[Modality, Features],
    visible: np.ndarray,
    *,
    search: Search,
) -> Labels:
    """Clusters of each modality alone, of some visible rows and of all infrared ones."""
    rows = {
        Modality.VISIBLE: visible,
        Modality.INFRARED: np.arange(len(features[Modality.INFRARED])),
    }
    return {
        m: spread_labels(
            clustering.cluster(
                take(features[m], rows[m]),
                k1=settings.k1,
                k2=settings.k2,
                eps=settings.eps,
                min_samples=settings.min_samples,
                search=search,
            ),
            rows[m],
            len(features[m]),
        )
        for m in INPUTS
    }


def joint_clusters(
    settings: Clustering,
    features: Mapping[Modality, Features],
    visible: np.ndarray,
    *,
    search: Search,
) -> Labels:
    """Clusters of some visible and all infrared rows together."""
    v, r = (features[m] for m in INPUTS)
    labels = clustering.cluster_jointly(
        stacked([take(v, visible), r]),
        np.repeat([False, True], [len(visible), len(r)]),
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.joint_eps or settings.eps,
        min_samples=settings.min_samples,
        balanced=settings.balanced,
        order=settings.order,
        search=search,
    )
    return {
        Modality.VISIBLE: spread_labels(labels[: len(visible)], visible, len(v)),
        Modality.INFRARED: labels[len(visible) :],
    }


def joint_labels(
    settings: Clustering,
    features: Mapping[Modality, Features],
    visible: np.ndarray,
    *,
    search: Search,
    given: Labels | None = None,
) -> Labels:
    """Labels that hold across the modalities, per modality (n,); -1 = none.

    Args:
        settings: `together` says how.
        features: per modality (n, D) unit rows.
        visible: rows of the visible modality that take part.
        search: finds nearest rows.
        given: classes of each modality from 0, in place of its clusters; not where `together` is
            "rows", which would split them.
    """
    if settings.together == "rows":
        return joint_clusters(settings, features, visible, search=search)
    alone = given or separate_clusters(settings, features, visible, search=search)
    pairs = _pairs(settings, features, visible, alone, search)
    return {
        Modality.VISIBLE: alone[Modality.VISIBLE],
        Modality.INFRARED: renamed(alone[Modality.INFRARED], pairs, _count(alone)[0]),
    }


def renamed(labels: np.ndarray, pairs: np.ndarray, num_first: int) -> np.ndarray:
    """The second modality's labels in joint names.

    Args:
        labels: (n,) clusters of the second modality; -1 stays.
        pairs: (M, 2) clusters of the first and the second modality; one to one.
        num_first: clusters of the first modality, whose names are the joint ones.

    Returns:
        (n,): of a paired cluster its partner, of the others new names from `num_first` on.
    """
    num = int(labels.max(initial=OUTLIER)) + 1
    names = np.full(num, OUTLIER, dtype=np.int64)
    names[pairs[:, 1]] = pairs[:, 0]
    alone = names == OUTLIER
    names[alone] = num_first + np.arange(alone.sum())
    return np.where(labels == OUTLIER, OUTLIER, names[labels])


def _pairs(
    settings: Clustering,
    features: Mapping[Modality, Features],
    visible: np.ndarray,
    alone: Labels,
    search: Search,
) -> np.ndarray:
    if 0 in _count(alone):
        return np.empty((0, 2), dtype=np.int64)
    assigned = np.empty((0, 2), dtype=np.int64)
    if settings.together != "overlap":
        means = [clustering.unit_centroids(features[m], alone[m]) for m in INPUTS]
        assigned = matching.hungarian_pairs(*means)
    if settings.together == "assigned":
        return assigned
    joint = joint_clusters(settings, features, visible, search=search)
    v, r = INPUTS
    overlap = association.joint_overlap(alone[v], joint[v], alone[r], joint[r])
    overlapping = association.pairs_of_overlap(overlap)
    if settings.together == "both":
        return association.pairs_of_both(assigned, overlapping)
    return association.pairs_of_either(overlapping, assigned)


def _count(labels: Labels) -> list[int]:
    return [int(labels[m].max(initial=OUTLIER)) + 1 for m in INPUTS]
