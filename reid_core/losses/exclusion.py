"""A loss that only excludes: it says what a row is not, never what it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.losses.masking import in_float32

_EPS = 1e-10


@in_float32
def exclusion(scores: Tensor, proposed: Tensor) -> Tensor:
    """Pushes a row away from the classes that are less likely than all that were proposed for it.

    With p = softmax(scores) and t the least p among a row's proposed classes, the mean over rows
    with a proposal of - sum over {c : p_c < t} log(1 - p_c + 1e-10). Which classes are meant is
    decided without gradient.

    Args:
        scores: (B, C) logits.
        proposed: (B, C) bool, several classes per row or none.

    Returns:
        Scalar; 0 where no row has a proposal.

    Reference: WSL-VIReID (Zhang et al., ICCV 2025), contradictory relations.
    """
    p = F.softmax(scores, dim=1)
    known = proposed.any(dim=1)
    least = p.detach().masked_fill(~proposed, torch.inf).min(dim=1, keepdim=True).values
    excluded = (p.detach() < least) & known[:, None]
    values = -(torch.log((1 - p).clamp(min=0) + _EPS) * excluded).sum(dim=1)
    return values.sum() / known.sum().clamp(min=1)
