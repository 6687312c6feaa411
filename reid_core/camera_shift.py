"""What a camera adds to the features of everyone it sees, taken away before they are compared.

Casts, places and noise of a camera move all of its features alike. Where cameras see the same
kinds of identities, their means and spreads say what the camera does and nothing of who is there.
"""

from __future__ import annotations

import numpy as np

_LEAST_ROWS = 32
_LEAST_SPREAD = 1e-3


def without_cameras(features: np.ndarray, cameras: np.ndarray, *, scaling: float) -> np.ndarray:
    """Features minus their camera's mean, over a power of its deviation, as unit rows.

    A camera of fewer than 32 rows is taken for a part of all rows: its own statistics would be
    those of a few identities. A row that has nothing left stays as it was.

    Args:
        features: (N, D) unit rows of one modality.
        cameras: (N,) camera numbers.
        scaling: power of the camera's standard deviation, per dimension, that is divided by: 0 for
            the mean alone, 1 for all of the deviation.

    Returns:
        float32 (N, D).

    Raises:
        ValueError: not one camera per row.

    Reference: ours.
    """
    if cameras.shape != (len(features),):
        raise ValueError(f"cameras have shape {cameras.shape} for {len(features)} rows")
    shifted = np.array(features, dtype=np.float64)
    of_all = _statistics(shifted) if len(shifted) else (0.0, 1.0)
    for camera in np.unique(cameras):
        rows = cameras == camera
        mean, spread = _statistics(shifted[rows]) if rows.sum() >= _LEAST_ROWS else of_all
        shifted[rows] = (shifted[rows] - mean) / spread**scaling
    lengths = np.linalg.norm(shifted, axis=1, keepdims=True)
    shifted = np.where(lengths > _LEAST_SPREAD, shifted / np.maximum(lengths, 1e-12), features)
    return shifted.astype(np.float32)


def _statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(axis=0), rows.std(axis=0) + _LEAST_SPREAD
