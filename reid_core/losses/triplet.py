"""The weighted regularised triplet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.losses.masking import euclidean, in_float32
from reid_core.types import OUTLIER

_REFERENCE_WEIGHT_EPS = 1e-6


@in_float32
def weighted_regularised_triplet(x: Tensor, labels: Tensor, *, stable: bool = True) -> Tensor:
    """Softplus of the softly furthest positive minus the softly closest negative distance.

    Every distance to a positive (the row itself included) is weighted by a softmax of the
    distances, every distance to a negative by a softmax of the negated distances. No margin.

    Args:
        x: (B, D) raw features, not normalized here.
        labels: (B,) int64; a row of -1 is neither anchor, positive nor negative.
        stable: the true softmax. False repeats the public code, whose weights are not rescaled on
            the negative side and carry 1e-6 in the denominator: they vanish once distances pass
            about 18, and the push between classes with them.

    Returns:
        Mean over the rows with a label and at least one negative; 0 where there is none.

    Reference: CSDN, stage 3, WRT (from AGW); its public code for `stable=False`.
    """
    known = labels != OUTLIER
    pairs = known[:, None] & known[None, :]
    same = labels[:, None] == labels[None, :]
    positives, negatives = pairs & same, pairs & ~same
    distance = euclidean(x)
    weigh = _softmax_weights if stable else _reference_weights
    furthest = (distance * weigh(distance, positives)).sum(dim=1)
    closest = (distance * weigh(-distance, negatives)).sum(dim=1)
    valid = negatives.any(dim=1)
    return (F.softplus(furthest - closest) * valid).sum() / valid.sum().clamp(min=1)


def _softmax_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the masked entries of each row; rows without any are all zero."""
    # the lowest finite number and not -inf, whose softmax over an empty row would be NaN
    filled = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(filled, dim=1) * mask


def _reference_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """The public code's weights: shifted by the largest of `scores * mask`, plus 1e-6."""
    shift = (scores * mask).amax(dim=1, keepdim=True)
    # masked before exp: there the unmasked entries could overflow and give 0 * inf
    weights = torch.exp((scores - shift).masked_fill(~mask, 0.0)) * mask
    return weights / (weights.sum(dim=1, keepdim=True) + _REFERENCE_WEIGHT_EPS)
