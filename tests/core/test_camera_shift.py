"""What cameras add is taken away, and nothing of who is there."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core import clustering
from reid_core.agreement import clustering_agreement
from reid_core.camera_shift import without_cameras


def seen_by(num_cameras: int, cast: float, spread: float = 1.0):
    """40 identities with 2 images in each camera; each camera casts its own shift and spread."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 24))
    truth = np.tile(np.repeat(np.arange(40), 2), num_cameras)
    cameras = np.repeat(np.arange(num_cameras), 80)
    shifts = cast * rng.normal(size=(num_cameras, 24))
    spreads = spread ** rng.normal(size=(num_cameras, 24))
    rows = centers[truth] + 0.25 * rng.normal(size=(len(truth), 24))
    rows = rows * spreads[cameras] + shifts[cameras]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), cameras, truth


@pytest.mark.parametrize("scaling", [0.0, 0.5, 1.0])
def test_clusters_agree_with_identities_once_the_cast_is_gone(scaling: float) -> None:
    features, cameras, truth = seen_by(3, cast=1.5)
    settings = {"k1": 6, "k2": 2, "min_samples": 3}
    before = clustering_agreement(clustering.cluster(features, **settings), truth)
    rows = without_cameras(features, cameras, scaling=scaling)
    after = clustering_agreement(clustering.cluster(rows, **settings), truth)
    assert before.ari < 0.8 < 0.95 < after.ari
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows.dtype == np.float32


def test_what_is_left_has_no_mean_and_with_one_the_same_deviation() -> None:
    """Before the rows are made unit ones again: tested where all have the same length."""
    features, cameras, _ = seen_by(2, cast=0.5, spread=2.0)
    rows = without_cameras(features, cameras, scaling=1.0)
    raw = (features - features[cameras == 0].mean(axis=0))[cameras == 0]
    expected = raw / (raw.std(axis=0) + 1e-3)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[cameras == 0], expected, atol=1e-5)


def test_a_small_camera_counts_as_everyone_and_an_empty_row_stays() -> None:
    features, cameras, _ = seen_by(2, cast=0.5)
    cameras[:5] = 7
    rows = without_cameras(features, cameras, scaling=0.0)
    expected = features[:5] - features.astype(np.float64).mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[:5], expected, atol=1e-5)
    same = np.repeat(features[:1], 40, axis=0)
    np.testing.assert_array_equal(without_cameras(same, np.zeros(40, int), scaling=0.0), same)
    with pytest.raises(ValueError, match="cameras have shape"):
        without_cameras(same, np.zeros(3, int), scaling=0.0)
    assert without_cameras(same[:0], np.zeros(0, int), scaling=1.0).shape == (0, 24)
