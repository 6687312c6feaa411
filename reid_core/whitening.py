"""Prototypes where the images of a cluster scatter alike in all directions.

Light, pose and camera move the images of one identity along few directions, in both modalities.
Those directions tell nobody apart, but they are long, so they decide the cosines between
prototypes of different modalities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reid_core.clustering import centroids
from reid_core.knn.products import Features
from reid_core.types import OUTLIER

_SHRINKAGE = 0.1  # share of the mean variance that is added to every direction
_ROUNDING = 1e-12  # of float32 rows, squared; their length is one
_BLOCK_BYTES = 1 << 28  # of gathered rows


def whitened_prototypes(features: Sequence[Features], labels: Sequence[np.ndarray]) -> list[Tensor]:
    """Centroids of the clusters of each modality, centered, in one whitened space.

    A prototype is (mean of its cluster - mean of all prototypes) W^-1/2, W the covariance of the
    rows around their centroids, the mean of all modalities' plus a tenth of its mean variance.

    Args:
        features: per modality (n, D) unit rows.
        labels: per modality (n,) int64, contiguous from 0; -1 is left out.

    Returns:
        Per modality (C, D) float32 unit rows on the host; a modality's only cluster is a zero row.

    Reference: within-class covariance normalization (Hatch, Kajarekar, Stolcke 2006) with clusters
    for classes; that both modalities share W is ours.
    """
    means = [torch.as_tensor(centroids(*side)) for side in zip(features, labels, strict=True)]
    sides = zip(features, labels, means, strict=True)
    scatter = torch.stack([_scatter(*side) for side in sides]).mean(dim=0)
    variance = scatter.diagonal().mean()
    if variance < _ROUNDING / len(scatter):  # images of a cluster are alike: nothing to whiten by
        return [_unit(mean.double().cpu()) for mean in means]
    values, vectors = torch.linalg.eigh(scatter + _SHRINKAGE * variance * torch.eye(len(scatter)))
    whitening = vectors / values.sqrt() @ vectors.T
    return [_unit(mean.double().cpu(), whitening) for mean in means]


def _scatter(features: Features, labels: np.ndarray, means: Tensor) -> Tensor:
    """Covariance (D, D) float64 of the rows of clusters around their centroids, on the host."""
    rows, width = torch.as_tensor(features), features.shape[1]
    clustered = np.flatnonzero(labels != OUTLIER)
    total = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    step = max(1, _BLOCK_BYTES // (4 * width))
    for start in range(0, len(clustered), step):
        part = torch.as_tensor(clustered[start : start + step], device=rows.device)
        offsets = rows[part] - means[torch.as_tensor(labels, device=rows.device)[part]]
        total += (offsets.T @ offsets).double()
    return total.cpu() / max(1, len(clustered))


def _unit(means: Tensor, whitening: Tensor | None = None) -> Tensor:
    offsets = means - means.mean(dim=0)
    return functional.normalize(offsets if whitening is None else offsets @ whitening).float()
