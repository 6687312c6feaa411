"""Tracklets as the unit of retrieval: one vector for all images that a tracker cut from one track.

Shapes: N rows, T tracklets, D feature width. A row without a tracklet is one of its own.
"""

from __future__ import annotations

import numpy as np

from reid_core.types import Split


def numbered(split: Split) -> np.ndarray:
    """(N,) int64 tracklet of each row, from 0 in order of appearance.

    Trackers count per camera: rows are of one tracklet where modality, camera and number agree.
    """
    numbers: dict[object, int] = {}
    return np.array(
        [
            numbers.setdefault(
                (row.modality, row.camera, row.tracklet) if row.tracklet >= 0 else place,
                len(numbers),
            )
            for place, row in enumerate(split.samples)
        ],
        dtype=np.int64,
    )


def pooled(split: Split, features: np.ndarray) -> tuple[Split, np.ndarray]:
    """A row per tracklet: the first of its rows, and the mean of their vectors as a unit row.

    Args:
        split: rows.
        features: (N, D) unit rows.

    Returns:
        A split of T rows, and (T, D) unit rows.

    Raises:
        ValueError: images of one tracklet that show different identities.
    """
    numbers = numbered(split)
    _, first = np.unique(numbers, return_index=True)
    if wrong := np.flatnonzero(split.pids != split.pids[first][numbers]).tolist():
        one, other = split.samples[first[numbers[wrong[0]]]], split.samples[wrong[0]]
        raise ValueError(
            f"tracklet {other.tracklet} of camera {other.camera} shows identity {one.pid} on "
            f"{one.image} and {other.pid} on {other.image}: a track is of one identity"
        )
    sums = np.zeros((len(first), features.shape[1]), dtype=np.float32)
    np.add.at(sums, numbers, features)
    return split.take(first), sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def lengths(split: Split) -> np.ndarray:
    """(T,) images of each tracklet, those without a tracklet left out."""
    counts = np.bincount(numbered(split)[split.tracklets >= 0])
    return counts[counts > 0]
