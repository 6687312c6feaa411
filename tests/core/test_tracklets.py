"""Tracklets: what belongs together, means by hand, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.near_duplicates import near_duplicates, representatives
from reid_core.tracklets import lengths, numbered, pooled
from reid_core.types import Modality, Sample, Split

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


def split_of(*rows: tuple[Modality, int, int, int]) -> Split:
    """Rows of (modality, pid, camera, tracklet)."""
    return Split(
        tuple(
            Sample(f"{i}.jpg", m, pid, cam, tracklet=t) for i, (m, pid, cam, t) in enumerate(rows)
        )
    )


def test_trackers_count_per_camera_and_loose_images_stay_alone() -> None:
    split = split_of(
        (VISIBLE, 1, 1, 7), (VISIBLE, 1, 2, 7), (VISIBLE, 1, 1, 7), (VISIBLE, 1, 1, -1),
        (VISIBLE, 1, 1, -1), (INFRARED, 1, 1, 7),
    )  # fmt: skip
    assert numbered(split).tolist() == [0, 1, 0, 2, 3, 4]
    assert lengths(split).tolist() == [2, 1, 1]


def test_the_mean_of_unit_rows_by_hand() -> None:
    split = split_of((VISIBLE, 3, 1, 5), (VISIBLE, 4, 1, 6), (VISIBLE, 3, 1, 5))
    tracks, rows = pooled(split, np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32))
    assert [sample.image for sample in tracks.samples] == ["0.jpg", "1.jpg"]
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


def test_a_track_of_two_identities_is_refused() -> None:
    split = split_of((VISIBLE, 3, 1, 5), (VISIBLE, 4, 1, 5))
    with pytest.raises(ValueError, match=r"tracklet 5 of camera 1 shows identity 3 .* and 4"):
        pooled(split, np.eye(2, dtype=np.float32))


class TestNearDuplicates:
    def test_sets_hang_together_and_single_rows_are_in_none(self) -> None:
        angles = np.deg2rad([0, 90, 5, 180, 10, 93])
        rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        sets = near_duplicates(rows, above=float(np.cos(np.deg2rad(6))))
        assert [one.tolist() for one in sets] == [[0, 2, 4], [1, 5]]

    def test_more_copies_than_neighbors_are_one_set(self) -> None:
        rows = np.repeat(np.eye(3, dtype=np.float32), [50, 1, 2], axis=0)
        assert [len(one) for one in near_duplicates(rows, above=1.0)] == [50, 2]

    @pytest.mark.parametrize("copies", [8, 25])
    def test_bursts_of_any_length_that_are_near_each_other_are_one_set(self, copies: int) -> None:
        """Beside equal rows, none of which crowds out the others; and without any."""
        angle = np.arccos(0.99)
        two = np.array([[1, 0], [np.cos(angle), np.sin(angle)]], dtype=np.float32)
        assert [len(x) for x in near_duplicates(np.repeat(two, copies, 0), above=0.95)] == [
            2 * copies
        ]
        spread = np.concatenate(
            [np.linspace(0, 0.01, copies), angle + np.linspace(0, 0.01, copies)]
        )
        rows = np.stack([np.cos(spread), np.sin(spread)], axis=1).astype(np.float32)
        assert [len(x) for x in near_duplicates(rows, above=0.95)] == [2 * copies]

    def test_bad_thresholds_and_few_rows(self) -> None:
        assert near_duplicates(np.eye(1, dtype=np.float32), above=0.9) == []
        for above in (0, 1.5):
            with pytest.raises(ValueError, match="near-duplicates above"):
                near_duplicates(np.eye(2, dtype=np.float32), above=above)


def test_what_is_left_out_is_like_what_stays_itself() -> None:
    """Views that turn by five degrees hang together; the first and the last are at right angles."""
    angles = np.deg2rad(np.arange(0, 95, 5))
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    (chain,) = near_duplicates(rows, above=0.98)
    assert len(chain) == len(rows)
    result = representatives(rows, above=0.98)
    # cos 10 degrees is 0.985, cos 15 degrees 0.966
    assert [(first, others.tolist()) for first, others in result] == [
        (first, [first + 1, first + 2][: 18 - first]) for first in range(0, 18, 3)
    ]
    left_out = np.concatenate([others for _, others in result])
    staying = np.setdiff1d(np.arange(len(rows)), left_out)
    products = rows @ rows[staying].T
    assert (products[left_out].max(axis=1) >= 0.98).all()
    assert (products[staying] - np.eye(len(staying)) < 0.98).all(), "what stays is not alike"


def test_equal_rows_are_left_out_though_their_products_round() -> None:
    row = np.random.default_rng(0).normal(size=64).astype(np.float32)
    rows = np.tile(row / np.linalg.norm(row), (4, 1))
    ((first, others),) = representatives(rows, above=1)
    assert (first, others.tolist()) == (0, [1, 2, 3])
