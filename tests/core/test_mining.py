"""Outlier mining against a row-by-row oracle, its edge cases, and any order of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_core import mining
from reid_core.mining import Mined

Miner = Callable[..., Mined]
MINERS = [mining.mine_nearest, mining.mine_prototype]


def groups(
    num_identities: int = 6, copies: int = 6, *, seed: int = 0, noise: float = 0.1
) -> np.ndarray:
    """Unit rows around well separated centers, `copies` of each identity one after another."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((num_identities, 16))
    rows = np.repeat(centers, copies, axis=0)
    rows = rows + noise * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def oracle(
    labels: np.ndarray, partners: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rule, one row after the other: labels and cosines."""
    mined, cosines = labels.copy(), np.where(labels == -1, -np.inf, 1.0)
    for n in range(len(labels)):
        if labels[n] != -1 or partners[n] == -1:
            continue
        near = [m for m in range(len(labels)) if partners[m] == partners[n] and labels[m] != -1]
        if near:
            exact = features.astype(np.float64)
            cosines[n] = max(float((exact[n] * exact[m]).sum()) for m in near)
            mined[n] = min(labels[m] for m in near if (exact[n] * exact[m]).sum() == cosines[n])
    return mined, cosines


@pytest.mark.parametrize("miner", MINERS)
def test_an_outlier_with_a_clustered_partner_regains_its_group(miner: Miner) -> None:
    truth = np.repeat(np.arange(6), 6)
    images, captions = truth.copy(), truth.copy()
    images[::6], captions[3::6] = -1, -1
    images[5], captions[5] = -1, -1  # both sides: cannot be placed
    expected = truth.copy()
    expected[5] = -1
    features = groups()
    assert np.array_equal(miner(images, captions, features).labels, expected)
    assert np.array_equal(miner(captions, images, features).labels, expected)


@pytest.mark.parametrize("miner", MINERS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_mining_does_not_depend_on_the_order_of_the_rows(miner: Miner, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = groups(seed=seed)
    labels, partners = rng.integers(-1, 5, size=(2, len(features)))
    labels[:5] = np.arange(5)  # contiguous
    order = rng.permutation(len(features))
    there = miner(labels, partners, features)
    shuffled = miner(labels[order], partners[order], features[order])
    assert np.array_equal(there.labels[order], shuffled.labels)
    assert np.allclose(
        there.similarity[order], shuffled.similarity, atol=1e-6
    )  # means are sums in an order


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk=st.sampled_from([1, 7, 8192]),
    products=st.sampled_from([1, 40, 1 << 22]),
    noise=st.sampled_from([0.1, 1e-7, 0.0]),
)
def test_nearest_equals_its_oracle_to_the_last_bit(
    seed: int, chunk: int, products: int, noise: float
) -> None:
    """Whatever is worked on at a time, also where float32 cannot tell the rows apart."""
    rng = np.random.default_rng(seed)
    features = groups(seed=seed, noise=noise)
    labels, partners = rng.integers(-1, 4, size=(2, len(features)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "_CHUNK", chunk)
        patch.setattr(mining, "_PRODUCTS", products)
        result = mining.mine_nearest(labels, partners, features)
    mined, cosines = oracle(labels, partners, features)
    assert np.array_equal(result.labels, mined)
    assert np.array_equal(result.similarity, cosines)


def test_equal_similarity_gives_the_smallest_label() -> None:
    features = np.ones((3, 1), dtype=np.float32)
    labels, partners = np.array([-1, 4, 2]), np.zeros(3, dtype=np.int64)
    assert mining.mine_nearest(labels, partners, features).labels.tolist() == [2, 4, 2]


def test_nearest_and_prototype_differ_where_one_member_stands_out() -> None:
    """The outlier is next to a stray member of cluster 1, but cluster 0's mean is nearer."""
    angles = np.radians([0.0, 20.0, 25.0, -5.0, 170.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels, partners = np.array([-1, 0, 0, 1, 1]), np.zeros(5, dtype=np.int64)
    assert mining.mine_nearest(labels, partners, features).labels[0] == 1
    assert mining.mine_prototype(labels, partners, features).labels[0] == 0


def test_a_smallest_similarity_keeps_far_outliers_out() -> None:
    features = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float32)
    labels, partners = np.array([-1, 0, -1, 1]), np.array([0, 0, 1, 1])
    result = mining.mine_nearest(labels, partners, features, min_similarity=0.79)
    assert result.labels.tolist() == [0, 0, 1, 1]
    result = mining.mine_nearest(labels, partners, features, min_similarity=0.81)
    assert result.labels.tolist() == [-1, 0, -1, 1]
    assert np.isneginf(result.similarity[[0, 2]]).all()


@pytest.mark.parametrize("miner", MINERS)
def test_nothing_to_mine_from(miner: Miner) -> None:
    features = groups(1, 4)
    nothing = np.full(4, -1)
    some = np.array([0, 0, 0, 0])
    assert (miner(nothing, some, features).labels == -1).all()
    assert (miner(nothing, nothing, features).labels == -1).all()
    assert np.array_equal(miner(some, nothing, features).labels, some)


def test_the_vote_takes_the_most_frequent_label_then_the_most_similar() -> None:
    owners = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 5, 5])
    labels = np.array([7, 2, 7, 4, 3, -1, -1, -1, 6, 9, 8])
    similarity = np.array([0.1, 0.9, 0.2, 0.3, 0.5, 0.9, 0.9, 0.9, 0.1, 0.4, 0.4])
    voted = mining.vote(labels, owners, similarity, num_owners=6)
    # 1: tie, by similarity; 3: outliers have no vote; 4: owns nothing; 5: tie in both
    assert voted.tolist() == [7, 3, -1, 6, -1, 8]
    order = np.random.default_rng(0).permutation(len(owners))
    again = mining.vote(labels[order], owners[order], similarity[order], num_owners=6)
    assert np.array_equal(voted, again)


def test_a_vote_of_outliers_elects_none() -> None:
    voted = mining.vote(np.full(3, -1), np.array([0, 0, 2]), np.ones(3), num_owners=3)
    assert voted.tolist() == [-1, -1, -1]


def test_contiguous_closes_gaps_in_order() -> None:
    assert mining.contiguous(np.array([5, -1, 2, 5, 9])).tolist() == [1, -1, 0, 1, 2]
    assert mining.contiguous(np.array([-1])).tolist() == [-1]


def unit_rows(number: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((number, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_published_data_sets_size_takes_seconds() -> None:
    """CUHK-PEDES has 68,126 pairs; a fifth of them outliers here, some 30 candidates each."""
    rng = np.random.default_rng(0)
    features = unit_rows(68_126, 64)
    labels, partners = rng.integers(0, 2500, size=(2, len(features)))
    labels[rng.random(len(labels)) < 0.2] = -1
    start = time.process_time()
    mined = mining.mine_nearest(mining.contiguous(labels), partners, features)
    assert time.process_time() - start < 3
    assert (mined.labels >= 0).all()


def test_one_large_cluster_is_compared_in_float32_first() -> None:
    """1.6 million pairs of width 512: 2.4 s of CPU time where all are multiplied in float64."""
    features = unit_rows(4400, 512)
    labels = np.arange(4400) % 50
    labels[:400] = -1
    start = time.process_time()
    mined = mining.mine_nearest(labels, np.zeros(4400, dtype=np.int64), features)
    assert time.process_time() - start < 0.8
    nearest = (features[:400].astype(np.float64) @ features[400:].astype(np.float64).T).argmax(1)
    assert np.array_equal(mined.labels[:400], labels[400 + nearest])
