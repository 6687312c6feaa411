"""Subset, proxies and batches of BMIL."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.methods.bmil import labels as bmil
from reid_core.types import Modality

V, R = Modality.VISIBLE, Modality.INFRARED


def test_parts_are_disjoint_new_every_epoch_and_all_rows_at_one() -> None:
    alone, joint = bmil.subset_parts(101, 0.5, seed=3, epoch=0)
    assert len(alone) == len(joint) == 50
    assert not set(alone) & set(joint)
    assert (np.diff(alone) > 0).all()
    assert (np.diff(joint) > 0).all()
    again = bmil.subset_parts(101, 0.5, seed=3, epoch=0)
    np.testing.assert_array_equal(again[0], alone)
    assert set(bmil.subset_parts(101, 0.5, seed=3, epoch=1)[0]) != set(alone)
    third = bmil.subset_parts(10, 0.3, seed=0, epoch=0)
    assert [len(part) for part in third] == [3, 3]
    for part in bmil.subset_parts(7, 1, seed=0, epoch=0):
        assert part.tolist() == list(range(7))
    with pytest.raises(ValueError, match=r"0\.7"):
        bmil.subset_parts(10, 0.7, seed=0, epoch=0)


def test_proxies_by_hand() -> None:
    """Label 0 is in both modalities, 1 in infrared alone, 2 in both."""
    joint = {V: np.array([2, 0, -1, 0]), R: np.array([1, 2, 0, -1])}
    proxies = bmil.split_proxies(joint)
    assert proxies.labels.tolist() == [0, 0, 1, 2, 2]
    assert proxies.of_rows[V].tolist() == [3, 0, -1, 0]
    assert proxies.of_rows[R].tolist() == [2, 4, 1, -1]
    of_label = proxies.of_label(joint)
    assert of_label[V].tolist() == [0, -1, 3]
    assert of_label[R].tolist() == [1, 2, 4]


def test_proxies_of_random_labels() -> None:
    rng = np.random.default_rng(0)
    joint = {V: rng.integers(-1, 20, 50), R: rng.integers(-1, 20, 40)}
    proxies = bmil.split_proxies(joint)
    assert len(proxies.labels) == sum(len(np.setdiff1d(y, [-1])) for y in joint.values())
    assert (np.diff(proxies.labels) >= 0).all()
    assert set(np.unique(proxies.labels, return_counts=True)[1]) <= {1, 2}
    for m in (V, R):
        assert ((proxies.of_rows[m] == -1) == (joint[m] == -1)).all()
        known = joint[m] != -1
        assert (proxies.labels[proxies.of_rows[m][known]] == joint[m][known]).all()
    assert not set(proxies.of_rows[V]) & set(proxies.of_rows[R]) - {-1}


def test_instances_are_from_other_cameras_than_their_anchor() -> None:
    """Cluster 0: two cameras; 1: one camera; 2: one row."""
    labels = np.array([0] * 6 + [1] * 3 + [2] + [-1] * 4)
    cameras = np.array([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 5, 5, 5])
    plan = bmil.camera_plan(
        labels, cameras, num_clusters=2, num_instances=4, num_batches=30, seed=0, epoch=0
    ).reshape(30, 2, 4)
    assert (labels[plan] == labels[plan][:, :, :1]).all()
    assert (labels[plan] >= 0).all()
    for group in plan.reshape(-1, 4):
        if labels[group[0]] == 0:
            assert (cameras[group[1:]] != cameras[group[0]]).all()
            assert len(set(group[1:])) == 3  # enough rows: without replacement
        elif labels[group[0]] == 1:
            assert group[0] not in group[1:]
        else:
            assert (group == 9).all()
    # a pass of three clusters gives one whole batch of two; no batch repeats a cluster
    assert (labels[plan[:, 0, 0]] != labels[plan[:, 1, 0]]).all()
    again = bmil.camera_plan(
        labels, cameras, num_clusters=2, num_instances=4, num_batches=30, seed=0, epoch=0
    )
    np.testing.assert_array_equal(again, plan.reshape(30, -1))


def test_fewer_clusters_than_a_batch_asks_for_keep_its_shape() -> None:
    labels, cameras = np.array([0, 0, 1, -1]), np.zeros(4, dtype=np.int64)
    plan = bmil.camera_plan(
        labels, cameras, num_clusters=5, num_instances=3, num_batches=4, seed=0, epoch=0
    )
    assert plan.shape == (4, 15)
    assert 3 not in plan
    with pytest.raises(ValueError, match="no cluster among 4 rows"):
        bmil.camera_plan(
            np.full(4, -1), cameras, num_clusters=1, num_instances=1, num_batches=1, seed=0, epoch=0
        )
