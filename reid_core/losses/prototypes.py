"""Contrast with prototypes under soft targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.losses.masking import divergence, in_float32, mean_over_targets, target_shares


@in_float32
def prototype_contrast(
    x: Tensor,
    targets: Tensor,
    bank: Tensor,
    *,
    temperature: float,
    num_negatives: int | None = None,
) -> Tensor:
    """Cross entropy -sum_c q_c log p_c of each row's softmax p over prototypes with its target q.

    Args:
        x: (B, D) unit rows, for example of the other modality than the bank's.
        targets: (B, C), not negative; scaled to sum 1 here. A row of zeros is left out.
        bank: (C, D) unit prototypes.
        temperature: divides the cosines.
        num_negatives: keep only this many prototypes without target in the softmax, the highest
            scores of each row; None = all.

    Returns:
        Mean over the rows with a target; 0 where there is none.

    Reconstruction: CPCL, L_xp with hard or soft targets, see docs/methods.md.
    """
    q = target_shares(targets)
    log_p = _prototype_log_p(x, q, bank, temperature=temperature, num_negatives=num_negatives)
    return mean_over_targets(-(q * log_p).sum(dim=1), q)


@in_float32
def scored_contrast(
    x: Tensor,
    targets: Tensor,
    bank: Tensor,
    *,
    temperature: float,
    num_scored: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`prototype_contrast` with a total number of prototypes in the softmax and weights of rows.

    Args:
        x, targets, bank, temperature: as in `prototype_contrast`.
        num_scored: keep this many prototypes in all, those with a target and the best others of
            each row; None = all.
        weights: (B,) factor of each row's loss; the mean's denominator stays the number of rows.

    Returns:
        As `prototype_contrast`.

    Reference: BMIL, stage 2, the global loss (50 scored); N-ULC, voted targets and row weights.
    """
    q = target_shares(targets)
    logits = x @ bank.T / temperature
    if num_scored is not None and num_scored < len(bank):
        is_target = q != 0
        best = logits.detach().masked_fill(is_target, torch.inf).topk(num_scored, dim=1).indices
        remaining = is_target.scatter(1, best, True)
        logits = logits.masked_fill(~remaining, torch.finfo(logits.dtype).min)
    values = -(q * F.log_softmax(logits, dim=1)).sum(dim=1)
    return mean_over_targets(values if weights is None else weights * values, q)


@in_float32
def prototype_divergence(
    x: Tensor,
    targets: Tensor,
    bank: Tensor,
    *,
    temperature: float,
    num_negatives: int | None = None,
) -> Tensor:
    """KL divergence sum_c p_c (log p_c - log(q_c + 1e-8)); arguments as in `prototype_contrast`.

    Reconstruction: CPCL, L_xp with targets "divergence", see docs/methods.md.
    """
    q = target_shares(targets)
    log_p = _prototype_log_p(x, q, bank, temperature=temperature, num_negatives=num_negatives)
    return mean_over_targets(divergence(log_p, q), q)


def _prototype_log_p(
    x: Tensor, targets: Tensor, bank: Tensor, *, temperature: float, num_negatives: int | None
) -> Tensor:
    """(B, C) log-softmax over prototypes, of which some may be left out."""
    logits = x @ bank.T / temperature
    if num_negatives is not None:
        negatives = logits.detach().masked_fill(targets != 0, -torch.inf)
        bound = negatives.topk(min(num_negatives, len(bank)), dim=1).values[:, -1:]
        remaining = (targets != 0) | (negatives >= bound)
        logits = logits.masked_fill(~remaining, torch.finfo(logits.dtype).min)
    return F.log_softmax(logits, dim=1)
