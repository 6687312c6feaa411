"""Plans: shape, membership, evenness, degenerate cluster counts, and the same plan everywhere."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest

from reid_core import sampling

LABELS = np.array([2, -1, 0, 0, 1, 2, 2, -1, 3, 4, 4, 1, 5, -1])


def plan(labels: np.ndarray = LABELS, **changes: int) -> np.ndarray:
    settings = {"num_clusters": 3, "num_instances": 4, "num_batches": 50, "seed": 7, "epoch": 2}
    return sampling.pk_plan(labels, **(settings | changes))


def test_batches_hold_distinct_clusters_of_consecutive_rows() -> None:
    labels = LABELS[plan()].reshape(50, 3, 4)
    assert (labels == labels[:, :, :1]).all()
    assert (labels >= 0).all()
    assert all(len(set(batch[:, 0])) == 3 for batch in labels)


def test_same_arguments_same_plan_and_each_argument_counts() -> None:
    assert np.array_equal(plan(), plan())
    assert not np.array_equal(plan(), plan(seed=8))
    assert not np.array_equal(plan(), plan(epoch=3))


def test_clusters_and_members_are_drawn_evenly() -> None:
    drawn = plan(num_batches=4000)
    clusters = np.bincount(LABELS[drawn[:, ::4]].ravel(), minlength=6) / drawn[:, ::4].size
    assert np.abs(clusters - 1 / 6).max() < 0.01
    members = np.bincount(drawn.ravel(), minlength=len(LABELS))
    assert np.abs(members[[0, 5, 6]] / members[[0, 5, 6]].sum() - 1 / 3).max() < 0.02
    # also the place within the batch, which decides the worker
    first = np.bincount(LABELS[drawn[:, 0]], minlength=6) / 4000
    assert np.abs(first - 1 / 6).max() < 0.03


def test_every_row_of_every_cluster_is_reached() -> None:
    assert set(plan(num_batches=400).ravel()) == set(np.flatnonzero(LABELS >= 0))


def test_as_many_clusters_as_asked_for_uses_all_in_each_batch(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        labels = LABELS[plan(num_clusters=6)].reshape(50, 6, 4)[:, :, 0]
    assert (np.sort(labels, axis=1) == np.arange(6)).all()
    assert not caplog.records


def test_fewer_clusters_than_asked_for_keep_the_shape_and_warn_once(caplog) -> None:
    labels = np.array([0, 0, 1, -1, 1, 2])
    with caplog.at_level(logging.WARNING):
        drawn = plan(labels, num_clusters=8)
    assert drawn.shape == (50, 32)
    chosen = labels[drawn].reshape(50, 8, 4)[:, :, 0]
    counts = np.array([np.bincount(batch, minlength=3) for batch in chosen])
    assert (counts.max(axis=1) - counts.min(axis=1) == 1).all()
    assert len(np.unique(chosen, axis=0)) > 10
    assert len(caplog.records) == 1
    assert "P=8" in caplog.text
    assert "only 3" in caplog.text


def test_one_cluster_is_enough() -> None:
    assert set(plan(np.array([0, -1, 0])).ravel()) == {0, 2}


@pytest.mark.parametrize("labels", [np.full(5, -1), np.empty(0, dtype=np.int64)])
def test_no_cluster_is_an_error_with_the_remedy(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"eps.*min_samples.*k1"):
        plan(labels)


def test_a_million_rows_take_about_a_second() -> None:
    labels = np.random.default_rng(0).integers(-1, 30_000, size=1_000_000)
    start = time.process_time()
    drawn = plan(labels, num_clusters=4, num_instances=16, num_batches=1_000_000 // 64 + 1)
    assert time.process_time() - start < 3
    assert drawn.shape == (15_626, 64)


@pytest.mark.parametrize(
    ("num_a", "num_b", "p", "k", "expected"),
    [(22_258, 11_909, 4, 16, 348), (22_258, 11_909, 8, 4, 696), (2060, 2060, 8, 4, 65)],
)
def test_published_numbers_of_batches(num_a, num_b, p, k, expected) -> None:
    found = sampling.num_batches(num_a, num_b, num_clusters=p, num_instances=k)
    assert found == expected


def test_prompt_plan_goes_once_through_the_larger_side() -> None:
    a, b = sampling.prompt_plan(20, 7, batch_size=5, seed=0, epoch=0)
    assert a.shape == b.shape == (4, 5)
    assert sorted(a.ravel()) == list(range(20))
    assert sorted(b.ravel()[:7]) == list(range(7))
    assert set(b.ravel()) == set(range(7))


def test_prompt_plan_drops_an_incomplete_batch_and_fills_a_lonely_one() -> None:
    a, b = sampling.prompt_plan(3, 13, batch_size=4, seed=0, epoch=0)
    assert a.shape == b.shape == (3, 4)
    assert len(set(b.ravel())) == 12
    a, b = sampling.prompt_plan(3, 2, batch_size=8, seed=0, epoch=0)
    assert a.shape == b.shape == (1, 8)
    assert set(a.ravel()) == {0, 1, 2}
    assert set(b.ravel()) == {0, 1}


def test_prompt_plan_changes_with_the_epoch_and_refuses_an_empty_side() -> None:
    first = sampling.prompt_plan(20, 7, batch_size=5, seed=0, epoch=0)
    second = sampling.prompt_plan(20, 7, batch_size=5, seed=0, epoch=1)
    assert not np.array_equal(first[0], second[0])
    with pytest.raises(ValueError, match="got 0 and 7"):
        sampling.prompt_plan(0, 7, batch_size=5, seed=0, epoch=0)


def test_augmentation_seeds_are_distinct_and_repeatable() -> None:
    seeds = sampling.augmentation_seeds((100, 64), seed=1, epoch=2)
    assert seeds.shape == (100, 64)
    assert seeds.dtype == np.uint64
    assert len(np.unique(seeds)) == 6400
    assert np.array_equal(seeds, sampling.augmentation_seeds((100, 64), seed=1, epoch=2))
    assert not np.isin(seeds, sampling.augmentation_seeds((100, 64), seed=1, epoch=3)).any()
