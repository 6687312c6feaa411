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
    result = sampling.num_batches(num_a, num_b, num_clusters=p, num_instances=k)
    assert result == expected


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


VISIBLE = np.repeat(np.arange(12), 5)
INFRARED = np.array([3, -1, 0, 0, 1, 2, 2, -1, 4, 5, 6, 7, 8, 9, 10, 99])


def test_paired_batches_hold_the_same_identities_place_by_place() -> None:
    a, b = sampling.paired_pk_plan(
        VISIBLE, INFRARED, num_classes=8, num_instances=4, num_batches=300, seed=3, epoch=1
    )
    assert a.shape == b.shape == (300, 32)
    assert np.array_equal(VISIBLE[a], INFRARED[b])
    identities = VISIBLE[a].reshape(300, 8, 4)
    assert (identities == identities[:, :, :1]).all()
    assert all(len(set(batch[:, 0])) == 8 for batch in identities)
    # 11 was never seen in infrared, 99 never in color
    assert set(identities.ravel()) == set(range(11))


def test_partners_are_drawn_evenly_and_change_with_seed_and_epoch() -> None:
    settings = {"num_classes": 8, "num_instances": 4, "num_batches": 600}
    drawn = [
        sampling.paired_pk_plan(INFRARED, VISIBLE, **settings, seed=seed, epoch=epoch)[1]
        for seed, epoch in ((3, 1), (3, 1), (4, 1), (3, 2))
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])
    of_first = np.bincount(drawn[0].ravel(), minlength=60)[:5]
    assert np.abs(of_first / of_first.sum() - 0.2).max() < 0.03


@pytest.mark.parametrize("swapped", [False, True])
def test_paired_plan_goes_once_through_the_larger_modality(swapped: bool) -> None:
    sides = (INFRARED, VISIBLE) if swapped else (VISIBLE, INFRARED)
    plan = sampling.paired_plan(*sides, batch_size=8, seed=0, epoch=0)
    large, small = plan[::-1] if swapped else plan
    assert large.shape == small.shape == (55 // 8 + 1, 8)
    assert np.array_equal(VISIBLE[large], INFRARED[small])
    assert sorted(large.ravel()[:55]) == list(range(55))  # those with a partner
    later = sampling.paired_plan(*sides, batch_size=8, seed=0, epoch=1)
    assert not np.array_equal(plan[0], later[0])


@pytest.mark.parametrize(("rows", "identities", "batches"), [(22_258, 395, 696), (2060, 206, 65)])
def test_published_numbers_of_paired_batches(rows, identities, batches) -> None:
    labels = np.arange(rows) % identities
    a, b = sampling.paired_plan(labels, labels[: rows // 2], batch_size=32, seed=0, epoch=0)
    assert a.shape == b.shape == (batches, 32)


def test_modalities_without_a_common_identity_are_refused() -> None:
    with pytest.raises(ValueError, match="no identity occurs in both"):
        sampling.paired_plan(np.array([0, 1]), np.array([2, -1]), batch_size=2, seed=0, epoch=0)


def test_shuffled_batches_are_a_permutation_without_its_tail() -> None:
    plan = sampling.shuffled_batches(23, batch_size=4, seed=1, epoch=0)
    assert plan.shape == (5, 4)
    assert len(set(plan.ravel())) == 20
    assert plan.max() < 23
    assert not np.array_equal(plan, sampling.shuffled_batches(23, batch_size=4, seed=1, epoch=1))
    with pytest.raises(ValueError, match="lower batch_size"):
        sampling.shuffled_batches(3, batch_size=4, seed=1, epoch=0)
