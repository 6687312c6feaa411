"""Pairs of two banks: the order of assignment and threshold, rectangles, empty ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reid_core import matching


def from_similarity(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two banks (not of unit length) whose products are the given matrix."""
    return np.eye(len(similarity)), similarity.T.copy()


# The best assignment takes 0-1 and 1-0 (0.9 + 0.05 > 0.9 - 0.5 ...); 1-0 then falls below 0.3.
GIVES_WAY = np.array([[0.8, 0.75], [0.2, -0.9]])


def test_dense_assigns_first_and_then_drops() -> None:
    a, b = from_similarity(GIVES_WAY)
    assert matching.hungarian_pairs(a, b).tolist() == [[0, 1], [1, 0]]
    assert matching.hungarian_pairs(a, b, min_similarity=0.3).tolist() == [[0, 1]]


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (1, 5), (5, 1)])
def test_rectangles_leave_the_surplus_unmatched(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a = F.normalize(torch.tensor(rng.normal(size=(shape[0], 16))), dim=1).float()
    b = F.normalize(torch.tensor(rng.normal(size=(shape[1], 16))), dim=1).float()
    pairs = matching.hungarian_pairs(a, b, min_similarity=-1.0)
    assert len(pairs) == min(shape)
    assert pairs.dtype == np.int64
    assert (np.diff(pairs[:, 0]) > 0).all()
    assert len(np.unique(pairs[:, 1])) == len(pairs)


def test_a_hidden_permutation_is_found_by_all() -> None:
    a = F.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    expected = [[i, int(torch.nonzero(order == i))] for i in range(12)]
    for find in (
        matching.hungarian_pairs,
        matching.mutual_nearest_pairs,
    ):
        assert find(a, a[order]).tolist() == expected


def test_centring_removes_a_common_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    identities = F.normalize(torch.randn(20, 16, generator=generator), dim=1)
    shift = torch.randn(16, generator=generator)
    assert torch.allclose(
        matching.centered(identities + shift), matching.centered(identities), atol=1e-5
    )
    assert torch.allclose(matching.centered(identities).norm(dim=1), torch.ones(20), atol=1e-5)


def test_mutual_nearest_needs_both_sides() -> None:
    similarity = np.array([[0.9, 0.1, 0.0], [0.95, 0.2, 0.1], [0.0, 0.3, 0.1]])
    banks = from_similarity(similarity)
    assert matching.mutual_nearest_pairs(*banks).tolist() == [[1, 0], [2, 1]]
    assert matching.mutual_nearest_pairs(*banks, min_similarity=0.5).tolist() == [[1, 0]]


def test_an_empty_bank_has_no_pairs() -> None:
    full, empty = torch.eye(3), torch.empty(0, 3)
    for find in (
        matching.hungarian_pairs,
        matching.mutual_nearest_pairs,
    ):
        for a, b in ((full, empty), (empty, full), (empty, empty)):
            assert find(a, b).shape == (0, 2)


def test_mutual_share_is_of_the_smaller_bank() -> None:
    axes = torch.eye(4)
    assert matching.mutual_share(axes, axes[[2, 0]]) == 1
    tilted = F.normalize(axes[:1] + 0.1 * axes[1:2], dim=1)
    twice = torch.cat([axes[:1], tilted])  # both are nearest to the same row
    assert matching.mutual_share(axes[:2], twice) == 0.5
    assert matching.mutual_share(axes, axes[:0]) == 0


def test_scaled_pairs_leave_out_the_partner_of_everyone() -> None:
    """Row 0 of b is near to all of a; what is left are partners, as after the assignment."""
    similarity = np.array([[0.9, 0.1, 0.1], [0.8, 0.75, 0.1], [0.8, 0.1, 0.75]])
    a, b = from_similarity(similarity)
    assert matching.mutual_nearest_pairs(a, b).tolist() == [[0, 0]]
    assert matching.scaled_pairs(a, b, neighbors=2).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert matching.scaled_pairs(a, b, neighbors=2, min_similarity=0.8).tolist() == [[0, 0]]
    assert matching.scaled_pairs(a, b[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="neighbors is 0"):
        matching.scaled_pairs(a, b, neighbors=0)
