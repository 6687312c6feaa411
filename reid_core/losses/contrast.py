"""Contrast with prototypes, classifiers and other rows that carry a label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.losses.masking import cross_entropy, euclidean, in_float32, masked_mean, same_label


@in_float32
def cluster_contrast(x: Tensor, labels: Tensor, bank: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of each row against all cluster prototypes.

    Args:
        x: (B, D) unit rows; not normalized here.
        labels: (B,) int64 cluster of each row, -1 = left out.
        bank: (C, D) unit prototypes. Gradients reach them only if they ask for it.
        temperature: divides the cosines, 0.05 in the reference.

    Returns:
        Mean over the rows with a label; 0 where there is none.

    Reference: CCLNet, stages 0 and 2, L_m.
    """
    return cross_entropy(x @ bank.T / temperature, labels)


@in_float32
def identity_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of class scores, without smoothing.

    Args:
        logits: (B, C) scores.
        labels: (B,) int64 class of each row, -1 = left out.

    Returns:
        Mean over the rows with a label; 0 where there is none.

    Reference: CSDN, stage 3, the identity loss.
    """
    return cross_entropy(logits, labels)


@in_float32
def supervised_contrast(
    a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Negative mean log-probability that a row of `a` gives to the rows of `b` with its label.

    Args:
        a: (B, D) anchors, not normalized here.
        b: (M, D) candidates; all of them stand in the softmax, outliers too.
        labels_a, labels_b: (B,) and (M,) int64, -1 = outlier.
        temperature: divides the products, 1 in the references.

    Returns:
        Mean over the anchors that have at least one candidate of their label (per anchor the mean
        over those candidates); 0 where there is none.

    Reference: CCLNet, stage 1, SC(A, B); CSDN, stages 1 and 2.
    """
    positives = same_label(labels_a, labels_b)
    log_probability = F.log_softmax(a @ b.T / temperature, dim=1)
    num_positives = positives.sum(dim=1)
    per_row = -(log_probability * positives).sum(dim=1) / num_positives.clamp(min=1)
    return per_row.sum() / (num_positives > 0).sum().clamp(min=1)


@in_float32
def modality_shared_enhancement(x: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Squared gap between two mean distances of a row to its class: across and within modality.

    Args:
        x: (B, D) raw features, not normalized here.
        labels: (B,) int64; a row of -1 takes no part.
        groups: (B,) int64 modality of each row, any two numbers.

    Returns:
        Mean of (c - a)^2 over the rows that have both kinds of partners, 0 where there is none:
        a is the mean distance to the other rows of the same label and modality, c to those of the
        same label and the other modality.

    Reference: CSDN, stage 3, MSEL. The public code means over each modality first, which is
    the same wherever both have equally many rows.
    """
    same = same_label(labels, labels)
    alike = groups[:, None] == groups[None, :]
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    within, across = same & alike & ~itself, same & ~alike
    distance = euclidean(x)
    gap = masked_mean(distance, across) - masked_mean(distance, within)
    valid = within.any(dim=1) & across.any(dim=1)
    return (gap.square() * valid).sum() / valid.sum().clamp(min=1)
