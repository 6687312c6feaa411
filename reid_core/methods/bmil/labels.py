"""Which images take part in an epoch of BMIL, what they are drawn to, and how batches are cut.

Shapes: n rows of a modality, C joint labels, P proxies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reid_core import sampling
from reid_core.types import OUTLIER, Modality

_SUBSET_STREAM, _CAMERA_STREAM = 16, 17


def subset_parts(
    num_rows: int, ratio: float, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of the visible images: what is clustered alone, and what is clustered jointly.

    Args:
        num_rows: n.
        ratio: of either part, in (0, 0.5], which are disjoint; 1 gives all rows to both.
        seed, epoch: of the draw, which differs in every epoch.

    Returns:
        Two ascending int64 (int(ratio n),).

    Raises:
        ValueError: a ratio that leaves no second part.

    Reference: BMIL, both stages, random subset (0.5 on SYSU-MM01, 1 on RegDB).
    """
    if ratio == 1:
        return np.arange(num_rows), np.arange(num_rows)
    if not 0 < ratio <= 0.5:
        raise ValueError(f"a subset's ratio is in (0, 0.5], or 1 for all rows: {ratio}")
    size = int(ratio * num_rows)
    order = sampling.generator(seed, epoch, _SUBSET_STREAM).permutation(num_rows)
    return np.sort(order[:size]), np.sort(order[size : 2 * size])


def spread_labels(labels: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """(n,) labels of all rows from those of some; -1 elsewhere."""
    spread = np.full(num_rows, OUTLIER, dtype=np.int64)
    spread[rows] = labels
    return spread


@dataclass(frozen=True)
class Proxies:
    """Joint clusters cut by modality: one prototype for each modality that a cluster has.

    Attributes:
        labels: (P,) joint label of each proxy, ascending; the visible proxy of a label first.
        of_rows: per modality (n,) proxy of each row, -1 for outliers.
    """

    labels: np.ndarray
    of_rows: dict[Modality, np.ndarray]

    def of_label(self, joint: Mapping[Modality, np.ndarray]) -> dict[Modality, np.ndarray]:
        """Per modality (C,) proxy of each joint label, -1 where the label is not seen there.

        Args:
            joint: per modality (n,) the joint labels that the proxies are of.
        """
        tables = {}
        for m, y in joint.items():
            tables[m] = np.full(self.labels.max(initial=OUTLIER) + 1, OUTLIER, dtype=np.int64)
            tables[m][y[y != OUTLIER]] = self.of_rows[m][y != OUTLIER]
        return tables


def split_proxies(joint: Mapping[Modality, np.ndarray]) -> Proxies:
    """Proxies of joint labels (n,) per modality, in the order of the mapping.

    Reference: BMIL, stage 2, the proxies.
    """
    sides = list(joint)
    # (label, side) as one number: ascending is the order of the proxies
    keys = {
        m: np.where(y == OUTLIER, OUTLIER, y * len(sides) + side)
        for side, (m, y) in enumerate(joint.items())
    }
    present = np.unique(np.concatenate([key[key != OUTLIER] for key in keys.values()]))
    of_rows = {
        m: np.where(key == OUTLIER, OUTLIER, np.searchsorted(present, key))
        for m, key in keys.items()
    }
    return Proxies(present // len(sides), of_rows)


def camera_plan(
    labels: np.ndarray,
    cameras: np.ndarray,
    *,
    num_clusters: int,
    num_instances: int,
    num_batches: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """P x K batches whose instances are from other cameras than their anchor.

    Clusters come in passes through random permutations, the incomplete end of a pass dropped. The
    anchor is a random row; the others are drawn from the rows of its cluster by other cameras,
    without replacement where they are enough; without such rows from all others of the cluster by
    the same rule; a cluster of one row repeats it.

    Args:
        labels, num_clusters, num_instances, num_batches, seed, epoch: as in `sampling.pk_plan`.
        cameras: (n,) camera of each row.

    Returns:
        int64 (num_batches, P K).

    Raises:
        ValueError: all rows are outliers.

    Reference: BMIL, both stages, its sampler; ours where a cluster has one row, which shifts the
    reference's later batches, and where there are fewer clusters than P, as in `pk_plan`.
    """
    clusters = np.unique(labels[labels != OUTLIER])
    if not len(clusters):
        raise ValueError(f"no cluster among {len(labels)} rows: raise eps or lower min_samples")
    rng = sampling.generator(seed, epoch, _CAMERA_STREAM)
    order = np.argsort(labels, kind="stable")
    cuts = np.searchsorted(labels[order], clusters)
    members = dict(zip(clusters.tolist(), np.split(order, cuts)[1:], strict=True))
    plan = np.empty((num_batches, num_clusters, num_instances), dtype=np.int64)
    for batch, chosen in enumerate(_passes(rng, clusters, num_clusters, num_batches)):
        for place, cluster in enumerate(chosen):
            plan[batch, place] = _instances(rng, members[int(cluster)], cameras, num_instances)
    return plan.reshape(num_batches, -1)


def _passes(
    rng: np.random.Generator, clusters: np.ndarray, num_clusters: int, num_batches: int
) -> list[np.ndarray]:
    """`num_batches` sets of clusters, cut from permutations without their incomplete ends."""
    batches: list[np.ndarray] = []
    while len(batches) < num_batches:
        order = rng.permutation(clusters)
        while len(order) < num_clusters:
            order = np.concatenate([order, rng.permutation(clusters)])
        whole = len(order) // num_clusters if len(clusters) >= num_clusters else 1
        batches += list(order[: whole * num_clusters].reshape(whole, num_clusters))
    return batches[:num_batches]


def _instances(
    rng: np.random.Generator, rows: np.ndarray, cameras: np.ndarray, count: int
) -> np.ndarray:
    anchor = rng.choice(rows)
    others = rows[cameras[rows] != cameras[anchor]]
    if not len(others):
        others = rows[rows != anchor] if len(rows) > 1 else rows
    rest = rng.choice(others, size=count - 1, replace=len(others) < count - 1)
    return np.concatenate([[anchor], rest])
