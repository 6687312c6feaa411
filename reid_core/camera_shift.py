"""What a camera adds to the features of everyone it sees, taken away before they are compared.

Casts, places and noise of a camera move all of its features alike. Where cameras see the same
kinds of identities, their means and spreads say what the camera does and nothing of who is there.
"""

from __future__ import annotations

import numpy as np

_LEAST_ROWS = 32
_LEAST_SPREAD = 1e-3
_NONE = np.zeros(1), np.ones(1)
_BLOCK = 4096  # rows that are held in float64 at a time


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
    result = np.array(features, dtype=np.float32)
    rows_of = [np.flatnonzero(cameras == camera) for camera in np.unique(cameras)]
    few = any(len(rows) < _LEAST_ROWS for rows in rows_of)
    of_all = _statistics(features, np.arange(len(features))) if few else _NONE
    for rows in rows_of:
        mean, spread = of_all if len(rows) < _LEAST_ROWS else _statistics(features, rows)
        for block in _blocks(rows):
            shifted = (features[block].astype(np.float64) - mean) / spread**scaling
            lengths = np.linalg.norm(shifted, axis=1, keepdims=True)
            shifted /= np.maximum(lengths, 1e-12)
            result[block] = np.where(lengths > _LEAST_SPREAD, shifted, features[block])
    return result


def _statistics(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of some rows, in float64 without a copy of all of them."""
    mean = sum(features[block].sum(axis=0, dtype=np.float64) for block in _blocks(rows)) / len(rows)
    squares = sum(np.square(features[block] - mean).sum(axis=0) for block in _blocks(rows))
    return mean, np.sqrt(squares / len(rows)) + _LEAST_SPREAD


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
