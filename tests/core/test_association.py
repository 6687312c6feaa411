"""Pairs of clusters from joint clusters, from transport, and from identities within a modality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid_core import association


def test_overlap_of_clusters_by_hand() -> None:
    """Cluster 0 of the first lies half in joint 0; cluster 1 of the second as a whole."""
    overlap = association.joint_overlap(
        np.array([0, 0, 1, -1]),
        np.array([0, -1, 1, 0]),
        np.array([0, 1, 1]),
        np.array([1, 0, 0]),
    )
    np.testing.assert_allclose(overlap, [[0, 0.5], [1, 0]])
    assert association.pairs_of_overlap(overlap).tolist() == [[0, 1], [1, 0]]
    assert association.pairs_of_overlap(overlap, least=0.5).tolist() == [[1, 0]]


def test_pairs_that_both_or_either_name() -> None:
    first, second = np.array([[0, 1], [2, 0]]), np.array([[0, 1], [1, 0], [3, 3]])
    assert association.pairs_of_both(first, second).tolist() == [[0, 1]]
    assert association.pairs_of_either(first, second).tolist() == [[0, 1], [2, 0], [3, 3]]
    none = np.empty((0, 2), dtype=np.int64)
    assert association.pairs_of_both(first, none).shape == (0, 2)
    assert association.pairs_of_either(none, second).tolist() == second.tolist()


def test_transport_has_uniform_marginals_and_finds_the_partners() -> None:
    rng = np.random.default_rng(0)
    a = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(6, 16))), dim=1)
    b = torch.nn.functional.normalize(a[[3, 1, 0, 5]] + 0.02 * torch.randn(4, 16), dim=1)
    plan = association.transport_plan(a, b, num_iterations=500)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 6, atol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 4, atol=1e-9)
    assert association.pairs_of_plan(plan).tolist() == [[0, 2], [1, 1], [3, 0], [5, 3]]


def pairs(*given: tuple[int, int]) -> np.ndarray:
    return np.array(given, dtype=np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("from_a", "from_b", "consistent", "single", "contradictory"),
    [
        (pairs((0, 1), (1, 0)), pairs((1, 0), (0, 1)), [[0, 1], [1, 0]], [], []),
        (pairs((0, 0), (1, 1)), pairs((1, 1)), [[1, 1]], [[0, 0]], []),
        (pairs((0, 0)), pairs((0, 1)), [], [], [[0, 0], [1, 0]]),
        # the public code calls (7, 5) contradictory, because 5 is also a number of the other side
        (pairs((5, 9)), pairs((5, 7)), [], [[5, 9], [7, 5]], []),
    ],
)
def test_verdicts_on_proposed_pairs(from_a, from_b, consistent, single, contradictory) -> None:
    """`from_b` names its own identity first."""
    result = association.verdicts(from_a, from_b)
    assert result.consistent.tolist() == consistent
    assert result.single.tolist() == single
    assert result.contradictory.tolist() == contradictory


def test_renumbered_identities_change_no_verdict() -> None:
    from_a, from_b = pairs((0, 2), (1, 0), (2, 1)), pairs((2, 0), (0, 2))
    a, b = np.array([2, 0, 1]), np.array([1, 2, 0])
    plain = association.verdicts(from_a, from_b)
    renumbered = association.verdicts(
        np.stack([a[from_a[:, 0]], b[from_a[:, 1]]], 1),
        np.stack([b[from_b[:, 0]], a[from_b[:, 1]]], 1),
    )
    for name in ("consistent", "single", "contradictory"):
        moved = {(a[i], b[j]) for i, j in getattr(plain, name).tolist()}
        assert moved == set(map(tuple, getattr(renumbered, name).tolist()))


def proposed(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """In blocks of two rows."""
    blocks = np.array_split(probabilities, 1 + len(probabilities) // 2)
    return association.proposed_pairs(blocks, labels, num_columns=probabilities.shape[1])


def test_rows_propose_the_pairs_they_name_most() -> None:
    """Three rows of identity 0 name column 1, one row of identity 1 does so more surely."""
    probabilities = np.array([[0.1, 0.6], [0.1, 0.6], [0.2, 0.7], [0.3, 0.9]])
    labels = np.array([0, 0, 0, 1])
    assert proposed(probabilities, labels).tolist() == [[0, 1]]
    surer = np.array([[0.1, 0.6], [0.8, 0.1], [0.1, 0.7], [0.9, 0.2]])
    assert proposed(surer, np.array([0, 0, 1, 1])).tolist() == [[0, 1], [1, 0]]


def test_modalities_without_an_identity_in_common_or_of_other_sizes_run() -> None:
    rng = np.random.default_rng(0)
    a = proposed(rng.random((30, 5)), rng.integers(0, 8, 30))
    b = proposed(rng.random((20, 8)), rng.integers(0, 5, 20))
    result = association.verdicts(a, b)
    assert len(a) <= 5
    assert len(b) <= 5
    total = sum(len(x) for x in (result.consistent, result.single, result.contradictory))
    assert total + len(result.consistent) == len(a) + len(b)
    assert proposed(np.empty((0, 3)), np.empty(0, dtype=np.int64)).shape == (0, 2)


@pytest.mark.parametrize("count", [0, 1, 7, 40, 90])
@pytest.mark.parametrize("rows_of_block", [1, 3, 100])
def test_the_largest_entries_of_blocks_are_those_of_the_matrix(
    count: int, rows_of_block: int
) -> None:
    """With many ties."""
    matrix = np.random.default_rng(0).integers(0, 6, (12, 5)).astype(np.float32)
    blocks = (matrix[i : i + rows_of_block] for i in range(0, 12, rows_of_block))
    expected = np.argsort(-matrix.ravel(), kind="stable")[:count]
    np.testing.assert_array_equal(association.largest_entries(blocks, count), expected)
