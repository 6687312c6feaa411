"""Losses between images and sentences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.losses.masking import (
    cross_entropy,
    divergence,
    in_float32,
    mean_over_targets,
    target_shares,
)


@in_float32
def image_to_text(g: Tensor, labels: Tensor, anchors: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Label-smoothed cross entropy of projected image features against one text per class.

    Args:
        g: (B, D) projected image features, neither normalized nor scaled.
        labels: (B,) int64 class of each row, -1 = left out.
        anchors: (C, D) text features, constant.
        smoothing: share of the target spread evenly over all C classes.

    Returns:
        Mean over the rows with a label; 0 where there is none.

    Reference: CCLNet, stage 2, I_m (0.1); CSDN, stage 3 (smoothing 0).
    """
    return cross_entropy(g @ anchors.T, labels, smoothing=smoothing)


@in_float32
def distribution_matching(
    img: Tensor, txt: Tensor, positives: Tensor, *, temperature: float
) -> Tensor:
    """Similarity distribution matching in both directions, image to text plus text to image.

    Args:
        img: (B, D) unit image features; txt: (M, D) unit text features.
        positives: (B, M) bool, the pairs that belong together; any pattern of pairs is allowed.
        temperature: divides the cosines, 0.02 in the reference.

    Returns:
        Sum of the two one-way losses.

    Reference: IRRA's SDM, with the target's rows normalized by row.
    """
    return distribution_matching_one_way(
        img, txt, positives, temperature=temperature
    ) + distribution_matching_one_way(txt, img, positives.T, temperature=temperature)


@in_float32
def distribution_matching_one_way(
    anchors: Tensor, candidates: Tensor, positives: Tensor, *, temperature: float
) -> Tensor:
    """KL divergence from the softmax over candidates to the even distribution over positives.

    Args:
        anchors: (B, D) unit rows; candidates: (M, D) unit rows, for example of all workers.
        positives: (B, M) bool.
        temperature: divides the cosines.

    Returns:
        Mean over the anchors with at least one positive of
        sum_j p_ij (log p_ij - log(q_ij + 1e-8)); 0 where there is none.

    Reference: IRRA's SDM, one direction of it.
    """
    q = target_shares(positives)
    log_p = F.log_softmax(anchors @ candidates.T / temperature, dim=1)
    return mean_over_targets(divergence(log_p, q), q)


@in_float32
def image_text_contrast(
    img: Tensor, txt: Tensor, positives: Tensor, *, temperature: float
) -> Tensor:
    """Contrast with any number of positives, the mean of image to text and text to image.

    Per anchor -log( sum_{j positive} e^{s_ij} / sum_j e^{s_ij} ). With the identity matrix as
    `positives` this is CLIP's symmetric cross entropy.

    Args:
        img: (B, D) unit image features; txt: (M, D) unit text features.
        positives: (B, M) bool, the pairs that belong together.
        temperature: divides the cosines.

    Returns:
        Mean of the two directions, each over the anchors with a positive; 0 where there is none.

    Reference: CLIP; CLPC's public code for several positives.
    """
    logits = img @ txt.T / temperature
    to_text, to_image = (
        _contrast_one_way(logits, positives),
        _contrast_one_way(logits.T, positives.T),
    )
    return (to_text + to_image) / 2


def _contrast_one_way(logits: Tensor, positives: Tensor) -> Tensor:
    # the lowest finite number and not -inf, whose logsumexp over an empty row has no gradient
    lowest = torch.finfo(logits.dtype).min
    among = torch.logsumexp(logits.masked_fill(~positives, lowest), dim=1)
    return mean_over_targets(torch.logsumexp(logits, dim=1) - among, positives)
