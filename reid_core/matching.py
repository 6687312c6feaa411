"""Pairs between the clusters of two banks.

Shapes: C_a and C_b clusters, D feature width, M pairs. Every function takes arrays or tensors (on
any device; the products are computed there) and returns NumPy int64 (M, 2), at most one pair per
cluster, rows sorted by the first column. C_a and C_b may differ: the surplus stays unmatched.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Prototypes = np.ndarray | Tensor

_BLOCK = 2048  # rows of one similarity block: 2048 x 50,000 float32 are 0.4 GB


def hungarian_pairs(
    bank_a: Prototypes, bank_b: Prototypes, *, min_similarity: float = 0.0
) -> np.ndarray:
    """One-to-one pairs of the largest total similarity, filtered afterwards.

    The assignment is solved on the full matrix and the threshold then drops pairs of it. It holds
    C_a x C_b float64 numbers, which suits the thousands of clusters of one data set.

    Args:
        bank_a: (C_a, D) unit rows.
        bank_b: (C_b, D) unit rows.
        min_similarity: pairs with a cosine below are dropped.

    Returns:
        int64 (M, 2), M <= min(C_a, C_b).

    Raises:
        ValueError: banks of other shapes, or numbers that are not finite.

    Reference: CCLNet, stages 0 and 2, matching (threshold 0).
    """
    similarity = _product(torch.as_tensor(bank_a), torch.as_tensor(bank_b))
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    remaining = similarity[rows, columns] >= min_similarity
    return _pairs(rows[remaining], columns[remaining])


def mutual_nearest_pairs(
    bank_a: Prototypes, bank_b: Prototypes, *, min_similarity: float = 0.0
) -> np.ndarray:
    """Pairs in which each is the other's most similar cluster (first row on ties).

    Args:
        bank_a, bank_b: (C_a, D) and (C_b, D) unit rows.
        min_similarity: pairs with a cosine below are left out.

    Returns:
        int64 (M, 2).

    Reconstruction: a stricter rule than the assignment, for identities that only one side has.
    """
    a, b = torch.as_tensor(bank_a), torch.as_tensor(bank_b)
    if not len(a) or not len(b):
        return _pairs(np.empty(0), np.empty(0))
    best_b, similarity = _nearest(a, b)
    best_a, _ = _nearest(b, a)
    rows = np.flatnonzero(best_a[best_b] == np.arange(len(a)))
    rows = rows[similarity[rows] >= min_similarity]
    return _pairs(rows, best_b[rows])


def scaled_pairs(
    bank_a: Prototypes, bank_b: Prototypes, *, neighbors: int = 5, min_similarity: float = 0.0
) -> np.ndarray:
    """Mutual nearest pairs of 2 s(a, b) - r(a) - r(b), r the mean of a cluster's best similarities.

    A cluster that is near to everyone is no longer everyone's nearest. At the start of generated
    identities these pairs hold as many right ones as the assignment, and half of the wrong ones.

    Args:
        bank_a, bank_b: (C_a, D) and (C_b, D) unit rows.
        neighbors: best similarities that r is the mean of, 1 or above.
        min_similarity: pairs with a cosine below are left out.

    Returns:
        int64 (M, 2).

    Raises:
        ValueError: `neighbors` below 1.

    Reference: Conneau et al., "Word Translation Without Parallel Data", ICLR 2018 (CSLS).
    """
    if neighbors < 1:
        raise ValueError(f"neighbors is {neighbors}; r is a mean of one similarity at least")
    similarity = _product(torch.as_tensor(bank_a), torch.as_tensor(bank_b))
    if not similarity.size:
        return _pairs(np.empty(0), np.empty(0))
    best_of_a = -np.sort(-similarity, axis=1)[:, :neighbors].mean(axis=1)
    best_of_b = -np.sort(-similarity, axis=0)[:neighbors].mean(axis=0)
    scaled = 2 * similarity - best_of_a[:, None] - best_of_b[None, :]
    best_b, best_a = scaled.argmax(axis=1), scaled.argmax(axis=0)
    rows = np.flatnonzero(best_a[best_b] == np.arange(len(similarity)))
    rows = rows[similarity[rows, best_b[rows]] >= min_similarity]
    return _pairs(rows, best_b[rows])


def mutual_share(bank_a: Prototypes, bank_b: Prototypes) -> float:
    """Share of the smaller bank's clusters in mutual nearest pairs; 0 where a bank is empty.

    Pairs with a negative cosine do not count.

    It needs no identity and separates worlds in which matches are mostly right from those in
    which they are not, which the similarity of pairs does not.

    Args:
        bank_a, bank_b: (C_a, D) and (C_b, D) unit rows.

    Reference: ours.
    """
    smaller = min(len(bank_a), len(bank_b))
    return len(mutual_nearest_pairs(bank_a, bank_b)) / smaller if smaller else 0.0


def centered(bank: Tensor) -> Tensor:
    """The bank minus its mean row, with unit rows again.

    Two modalities differ by a common shift; without it the cosines of their clusters compare
    identities only. A bank of one row has nothing left after the shift: its row is zero.

    Args:
        bank: (C, D).

    Returns:
        (C, D) unit rows.

    Reconstruction: ours, applied to both banks before matching them.
    """
    return F.normalize(bank - bank.mean(dim=0, keepdim=True), dim=1)


def _product(a: Tensor, b: Tensor) -> np.ndarray:
    """(C_a, C_b) float64 similarities on the host.

    Raises:
        ValueError: banks of other shapes, or numbers that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"banks have shapes {tuple(a.shape)} and {tuple(b.shape)}: give (C_a, D) and (C_b, D)"
        )
    similarity: np.ndarray = (a.float() @ b.float().T).double().cpu().numpy()
    if not np.isfinite(similarity).all():
        raise ValueError("a bank holds numbers that are not finite: leave such clusters out")
    return similarity


def _nearest(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Most similar row of b for every row of a, and the similarity."""
    blocks = [_product(a[start : start + _BLOCK], b) for start in range(0, len(a), _BLOCK)]
    best = np.concatenate([block.argmax(axis=1) for block in blocks])
    return best, np.concatenate([block.max(axis=1) for block in blocks])


def _pairs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack([rows, columns], axis=1).astype(np.int64)
