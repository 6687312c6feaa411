"""Retrieval scores by hand and against the per-query loop; agreement diagnostics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_core import agreement, metrics
from tests import oracles


def test_three_queries_by_hand() -> None:
    """Hits at ranks 1 and 3; at rank 2; nowhere."""
    similarity = np.array([[0.9, 0.8, 0.7, 0.1], [0.2, 0.4, 0.9, 0.1], [0.3, 0.2, 0.1, 0.0]])
    result = metrics.retrieval_metrics(
        similarity, np.array([1, 2, 9]), np.array([1, 2, 1, 3]), max_rank=4
    )
    assert result.num_valid_queries == 2
    assert result.num_invalid_queries == 1
    assert result.cmc.tolist() == [0.5, 1, 1, 1]
    assert result.mAP == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result.mINP == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.ap[:2] == pytest.approx([5 / 6, 1 / 2])
    assert np.isnan(result.ap[2])


def test_identity_style_counts_a_identity_once() -> None:
    """Ranked 5 5 5 7 1: by rows the hit is fifth, by identities third."""
    gallery = np.array([5, 5, 5, 7, 1])
    similarity = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    by_row = metrics.retrieval_metrics(similarity, np.array([1]), gallery)
    by_identity = metrics.retrieval_metrics(similarity, np.array([1]), gallery, cmc="identity")
    assert int(np.argmax(by_row.cmc)) == 4
    assert int(np.argmax(by_identity.cmc)) == 2
    assert by_row.mAP == by_identity.mAP == pytest.approx(1 / 5)


def test_ignored_rows_do_not_exist() -> None:
    similarity = np.array([[0.9, 0.8, 0.7]])
    gallery = np.array([1, 2, 1])
    ignore = np.array([[True, True, False]])
    result = metrics.retrieval_metrics(similarity, np.array([1]), gallery, ignore=ignore)
    assert result.cmc[0] == 1
    ignore = np.array([[True, False, True]])
    result = metrics.retrieval_metrics(similarity, np.array([1]), gallery, ignore=ignore)
    assert result.num_valid_queries == 0
    assert np.isnan(result.mAP)
    assert np.isnan(result.cmc).all()


def test_ties_are_ranked_by_gallery_row() -> None:
    similarity = np.zeros((2, 4), dtype=np.float32)
    result = metrics.retrieval_metrics(
        similarity, np.array([1, 2]), np.array([1, 2, 2, 1]), max_rank=3
    )
    assert result.cmc.tolist() == [0.5, 1, 1]
    assert result.ap == pytest.approx([(1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2])


@settings(max_examples=30, deadline=None)
@given(
    num_queries=st.integers(1, 6),
    num_gallery=st.integers(1, 30),
    num_pids=st.integers(1, 8),
    levels=st.integers(1, 40),
    by_identity=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_loop(num_queries, num_gallery, num_pids, levels, by_identity, seed) -> None:
    """Few levels make many ties."""
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, levels, size=(num_queries, num_gallery)).astype(np.float32)
    gallery = rng.integers(0, num_pids, size=num_gallery)
    queries = rng.integers(0, num_pids, size=num_queries)
    queries[0] = gallery[0]
    ignore = rng.random((num_queries, num_gallery)) < 0.3
    ignore[0, 0] = False
    cmc, aps, inps = oracles.retrieval(
        similarity, queries, gallery, ignore, by_identity=by_identity, max_rank=10
    )
    result = metrics.retrieval_metrics(
        similarity,
        queries,
        gallery,
        ignore=ignore,
        cmc="identity" if by_identity else "image",
        max_rank=10,
    )
    assert result.num_valid_queries == len(aps)
    np.testing.assert_allclose(result.cmc, cmc)
    np.testing.assert_allclose(result.ap[~np.isnan(result.ap)], aps)
    assert result.mINP == pytest.approx(np.mean(inps))


def test_blocks_and_tensors_change_nothing() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(700, 90)).astype(np.float32)
    queries, gallery = rng.integers(0, 20, size=700), rng.integers(0, 20, size=90)
    whole = metrics.retrieval_metrics(torch.from_numpy(similarity), queries, gallery)
    parts = [
        metrics.retrieval_metrics(similarity[i : i + 100], queries[i : i + 100], gallery).ap
        for i in range(0, 700, 100)
    ]
    np.testing.assert_array_equal(whole.ap, np.concatenate(parts))


def test_random_features_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    gallery = np.repeat(np.arange(50), 2)
    result = metrics.retrieval_metrics(
        rng.normal(size=(5000, 100)), rng.integers(0, 50, size=5000), gallery
    )
    assert result.cmc[0] == pytest.approx(1 / 50, abs=0.01)
    assert result.cmc[19] == pytest.approx(1 - (80 * 79) / (100 * 99), abs=0.03)


def test_bad_input_is_named() -> None:
    pids = np.array([0, 1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*2 gallery"):
        metrics.retrieval_metrics(np.zeros((2, 3)), pids, pids)
    with pytest.raises(ValueError, match="ignore has shape"):
        metrics.retrieval_metrics(np.zeros((2, 2)), pids, pids, ignore=np.zeros((1, 2), bool))
    with pytest.raises(ValueError, match="'image' or 'identity'"):
        metrics.retrieval_metrics(np.zeros((2, 2)), pids, pids, cmc="person")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        metrics.retrieval_metrics(np.array([[0, 1], [0, np.nan]]), pids, pids)
    with pytest.raises(ValueError, match="row 0 holds NaN"):  # a query without a match
        metrics.retrieval_metrics(np.array([[np.nan, 1], [0, 1]]), np.array([7, 1]), pids)
    with pytest.raises(ValueError, match=r"query_pids.*shape \(2, 1\)"):
        metrics.retrieval_metrics(np.zeros((2, 2)), pids[:, None], pids)
    with pytest.raises(ValueError, match="gallery_pids are no whole numbers"):
        metrics.retrieval_metrics(np.zeros((2, 2)), pids, pids + 0.5)
    with pytest.raises(ValueError, match="is no int64"):
        metrics.retrieval_metrics(np.zeros((2, 2)), pids, np.array([0, 2**63], dtype=np.uint64))


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_identities_of_any_whole_kind(kind: type) -> None:
    pids, similarity = np.array([0, 1], dtype=kind), np.array([[0.9, 0.1], [0.8, 0.2]])
    ignored = torch.tensor([[False, False], [True, False]])
    scores = metrics.retrieval_metrics(similarity, pids, pids, ignore=ignored)
    assert scores.cmc[0] == 1


def test_unknown_identities_match_nobody() -> None:
    """The unknown query has no match; two unknown rows and one of 5 stand before the hit."""
    queries, gallery = np.array([-1, 1]), np.array([-1, 5, -1, 1])
    similarity = np.tile([0.9, 0.8, 0.7, 0.6], (2, 1))
    for cmc in ("image", "identity"):
        result = metrics.retrieval_metrics(similarity, queries, gallery, cmc=cmc)
        assert result.num_invalid_queries == 1
        assert result.cmc[:4].tolist() == [0, 0, 0, 1]
        assert result.mAP == 1 / 4


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_is_ranked_in_its_own_precision(kind: torch.dtype) -> None:
    """In float32 both similarities would be equal, and the wrong row first."""
    low, high = {torch.float64: (1, 1 + 1e-12), torch.int64: (2**40, 2**40 + 1)}.get(kind, (1, 2))
    similarity = torch.tensor([[low, high]], dtype=kind)
    result = metrics.retrieval_metrics(similarity, np.array([1]), np.array([0, 1]))
    assert result.cmc[0] == 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),  # other names for the same clusters
        ([0, 0, 1, 1, -1, -1, -1, -1], [0, 0, 1, 1, 0, 0, -1, -1], 0.5),  # half take part
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),  # every pair taken apart, by hand
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),  # one cluster tells nothing apart
        ([-1, -1, -1, -1], [-1, -1, -1, -1], 0.0),
        ([0, 1, -1, -1], [-1, -1, 0, 1], 0.0),
    ],
)
def test_clustering_stability_by_hand(before: list, after: list, expected: float) -> None:
    result = agreement.clustering_stability(np.array(before), np.array(after))
    assert result == pytest.approx(expected)


def test_clustering_agreement_leaves_outliers_out() -> None:
    labels = np.array([0, 0, 0, 1, 1, -1, -1])
    truth = np.array([5, 5, 6, 7, 7, 5, 7])
    result = agreement.clustering_agreement(labels, truth)
    assert result.purity == pytest.approx(4 / 5)
    assert 0 < result.ari < 1
    perfect = agreement.clustering_agreement(np.array([1, 1, 0, -1]), np.array([3, 3, 9, 3]))
    assert (perfect.ari, perfect.purity) == (1, 1)
    nothing = agreement.clustering_agreement(np.full(3, -1), np.arange(3))
    assert np.isnan(nothing.ari)
    assert np.isnan(nothing.purity)


def test_matching_accuracy_compares_majorities() -> None:
    labels_a, truth_a = np.array([0, 0, 0, 1, -1]), np.array([4, 4, 8, 8, 9])
    labels_b, truth_b = np.array([1, 1, 0, 0]), np.array([4, 4, 3, 3])
    pairs = np.array([[0, 1], [1, 0]])
    assert agreement.matching_accuracy(pairs, labels_a, truth_a, labels_b, truth_b) == 0.5
    none = np.empty((0, 2), dtype=np.int64)
    assert np.isnan(agreement.matching_accuracy(none, labels_a, truth_a, labels_b, truth_b))


def test_matching_accuracy_leaves_unknown_identities_out() -> None:
    """Side a: 4, unknown, 6 beside two unknown rows; two pairs can be told, one of them right."""
    labels_a, truth_a = np.array([0, 1, 1, 2, 2, 2]), np.array([4, -1, -1, 6, -1, -1])
    labels_b, truth_b = np.array([0, 1, 2]), np.array([4, -1, 6])
    pairs = np.array([[0, 0], [1, 1], [2, 1], [1, 2], [2, 0]])
    assert agreement.matching_accuracy(pairs, labels_a, truth_a, labels_b, truth_b) == 0.5
    unknown = np.full(3, -1)
    assert np.isnan(agreement.matching_accuracy(pairs, labels_a, truth_a, labels_b, unknown))


def test_average_precision_by_hand() -> None:
    """Hits at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3."""
    assert metrics.average_precision(np.array([1, 3, 4])) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_association_agreement_counts_pairs_of_rows_by_hand() -> None:
    """Pair (0, 1) joins 3 x 2 rows, 4 of one identity; rows of one identity meet 2*2 + 1*1 times.

    The outlier of side a and the unpaired cluster of side b lower the recall alone.
    """
    labels_a, truth_a = np.array([0, 0, 0, -1, 1]), np.array([4, 4, 8, 9, -1])
    labels_b, truth_b = np.array([1, 1, 0]), np.array([4, 4, 9])
    pairs = np.array([[0, 1], [0, 1]])
    result = agreement.association_agreement(pairs, labels_a, truth_a, labels_b, truth_b)
    assert result.precision == pytest.approx(4 / 6)
    assert result.recall == pytest.approx(4 / 5)
    large = [np.where(x < 0, x, 2**60 + x) for x in (truth_a, truth_b)]
    assert result == agreement.association_agreement(pairs, labels_a, large[0], labels_b, large[1])
    none = np.empty((0, 2), dtype=np.int64)
    empty = agreement.association_agreement(none, labels_a, truth_a, labels_b, truth_b)
    assert np.isnan(empty.precision)
    assert empty.recall == 0
    unknown = np.full(3, -1)
    assert np.isnan(
        agreement.association_agreement(pairs, labels_a, truth_a, labels_b, unknown).recall
    )
