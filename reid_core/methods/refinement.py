"""Labels that neighbors have voted for, made between epochs and used within them.

Shapes: n rows of a modality, K neighbors, W entries of a row (the largest number of them), B rows
of a batch, C clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from reid_core import votes
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features
from reid_core.methods.sections import Refinement
from reid_core.types import OUTLIER, Modality


def refined(
    settings: Refinement,
    modality: Modality,
    features: Features,
    labels: np.ndarray,
    *,
    search: Search,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """One modality's targets and weights for `Refined`, and numbers for the log.

    Args:
        settings: what is wanted.
        modality: of the rows; names the arrays.
        features: (n, D) unit rows.
        labels: (n,) their clusters; -1 = outlier.
        search: finds the voters.

    Reference: N-ULC, both parts, within one modality.
    """
    return voted(settings, modality, search(features, settings.neighbors).rows, labels, labels)


def voted(
    settings: Refinement,
    modality: Modality,
    neighbors: np.ndarray,
    labels: np.ndarray,
    pool_labels: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """`refined` by given neighbors, of this modality or of another one.

    Args:
        settings, modality: as there.
        neighbors: (n, K) rows of the pool.
        labels: (n,) a cluster of the pool for each row; -1 = none.
        pool_labels: (pool,) clusters of the pool; -1 = outlier.
    """
    cast = votes.neighbor_votes(neighbors, pool_labels)
    weights = votes.confidence(cast, labels, sharpness=settings.sharpness)
    targets = votes.voted_targets(cast, labels, hard_share=settings.hard_share)
    columns, shares = padded(targets)
    arrays = {
        f"target_columns.{modality}": columns,
        f"target_shares.{modality}": shares,
        f"weights.{modality}": weights.astype(np.float32),
    }
    known = labels != OUTLIER
    if not known.any():
        return arrays, {}
    largest = np.asarray(cast[np.flatnonzero(known)].argmax(axis=1)).ravel()
    counts = {
        f"confidence_{modality}": float(weights[known].mean()),
        f"distrusted_{modality}": float((weights[known] < 0.1).mean()),
        f"outvoted_{modality}": float((largest != labels[known]).mean()),
    }
    return arrays, counts


@dataclass(frozen=True)
class Refined:
    """A modality's targets and weights on the device of the banks.

    Attributes:
        columns, shares: (n, W) clusters of each row's target and their shares; a share of 0 fills
            up.
        weights: (n,).
    """

    columns: Tensor
    shares: Tensor
    weights: Tensor

    @staticmethod
    def of(
        arrays: Mapping[str, np.ndarray], modality: Modality, device: torch.device
    ) -> Refined | None:
        """From what `refined` made; None where nothing was refined."""
        if f"weights.{modality}" not in arrays:
            return None
        names = ("target_columns", "target_shares", "weights")
        return Refined(*(torch.tensor(arrays[f"{n}.{modality}"], device=device) for n in names))

    def targets(
        self, rows: Tensor, labels: Tensor, num_clusters: int, settings: Refinement
    ) -> Tensor:
        """(B, C) targets of rows (B,): voted ones, or their labels (B,) where those stay hard."""
        known = (labels != OUTLIER)[:, None]
        if settings.labels == "hard":
            return functional.one_hot(labels.clamp(min=0), num_clusters) * known
        zeros = torch.zeros(len(rows), num_clusters, device=self.shares.device)
        return zeros.scatter_add(1, self.columns[rows], self.shares[rows]) * known


def padded(matrix: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """int64 and float32 (n, W): columns and values of each row, filled up with zeros.

    Rows of it are read on a device without a wait, as those of a sparse matrix are not.
    """
    counts = np.diff(matrix.indptr)
    width = max(1, int(counts.max(initial=0)))
    is_entry = np.arange(width)[None, :] < counts[:, None]
    columns = np.zeros(is_entry.shape, dtype=np.int64)
    shares = np.zeros(is_entry.shape, dtype=np.float32)
    columns[is_entry], shares[is_entry] = matrix.indices, matrix.data
    return columns, shares
