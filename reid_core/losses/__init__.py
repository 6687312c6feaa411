"""Training losses: scalars computed from features, labels and candidates, on the input's device.

Shapes: B anchor rows, M candidate rows, C clusters or classes, D feature width.

Anchors and candidates are separate arguments, so a candidate set gathered from other workers fits
without a flag. A label of -1 marks an outlier: it never equals another -1, and its row is left out
of the mean. Where no row is left the loss is a zero that still touches the graph, so that a worker
without a valid row takes part in the backward pass. Each mean is over this call's valid rows; a
caller that averages over workers scales it by `world_size * local count / global count`, with the
count of `count_valid`, `count_positive_rows` or `count_targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.types import OUTLIER

Loss = TypeVar("Loss", bound=Callable[..., Tensor])

_MIN_SQUARED_DISTANCE = 1e-12
_REFERENCE_WEIGHT_EPS = 1e-6
_TARGET_EPS = 1e-8


def in_float32(loss: Loss) -> Loss:
    """A loss whose half-precision inputs are widened and whose products are not narrowed.

    Similarities over a temperature of 0.02, products of unnormalized features and differences of
    squared distances have nothing left in half precision, where a training step computes in it.
    """

    @wraps(loss)
    def computed(*inputs: Any, **named: Any) -> Tensor:
        given = (x.device.type for x in (*inputs, *named.values()) if isinstance(x, Tensor))
        with torch.autocast(next(given, "cpu"), enabled=False):
            wide = {name: _widened(x) for name, x in named.items()}
            return loss(*map(_widened, inputs), **wide)

    return cast("Loss", computed)


def _widened(x: object) -> object:
    is_half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_half else x  # type: ignore[attr-defined]


def count_valid(labels: Tensor) -> Tensor:
    """Number of rows that a loss with these labels averages over, a scalar int64 tensor."""
    return (labels != OUTLIER).sum()


def count_positive_rows(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Number of rows of `a` that `supervised_contrast` averages over, a scalar int64 tensor."""
    return _same_label(labels_a, labels_b).any(dim=1).sum()


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
    return _cross_entropy(x @ bank.T / temperature, labels)


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
    return _cross_entropy(g @ anchors.T, labels, smoothing=smoothing)


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
    return _cross_entropy(logits, labels)


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
    positives = _same_label(labels_a, labels_b)
    log_probability = F.log_softmax(a @ b.T / temperature, dim=1)
    num_positives = positives.sum(dim=1)
    per_row = -(log_probability * positives).sum(dim=1) / num_positives.clamp(min=1)
    return per_row.sum() / (num_positives > 0).sum().clamp(min=1)


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
    distance = _euclidean(x)
    weigh = _softmax_weights if stable else _reference_weights
    furthest = (distance * weigh(distance, positives)).sum(dim=1)
    closest = (distance * weigh(-distance, negatives)).sum(dim=1)
    valid = negatives.any(dim=1)
    return (F.softplus(furthest - closest) * valid).sum() / valid.sum().clamp(min=1)


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
    same = _same_label(labels, labels)
    alike = groups[:, None] == groups[None, :]
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    within, across = same & alike & ~itself, same & ~alike
    distance = _euclidean(x)
    gap = _masked_mean(distance, across) - _masked_mean(distance, within)
    valid = within.any(dim=1) & across.any(dim=1)
    return (gap.square() * valid).sum() / valid.sum().clamp(min=1)


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
    q = _shares(positives)
    log_p = F.log_softmax(anchors @ candidates.T / temperature, dim=1)
    return _mean_over_targets(_divergence(log_p, q), q)


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


def count_targets(targets: Tensor) -> Tensor:
    """Number of rows that the prototype losses average over, a scalar int64 tensor."""
    return (targets != 0).any(dim=1).sum()


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
    q = _shares(targets)
    log_p = _prototype_log_p(x, q, bank, temperature=temperature, num_negatives=num_negatives)
    return _mean_over_targets(-(q * log_p).sum(dim=1), q)


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
    q = _shares(targets)
    log_p = _prototype_log_p(x, q, bank, temperature=temperature, num_negatives=num_negatives)
    return _mean_over_targets(_divergence(log_p, q), q)


def _contrast_one_way(logits: Tensor, positives: Tensor) -> Tensor:
    # the lowest finite number and not -inf, whose logsumexp over an empty row has no gradient
    lowest = torch.finfo(logits.dtype).min
    among = torch.logsumexp(logits.masked_fill(~positives, lowest), dim=1)
    return _mean_over_targets(torch.logsumexp(logits, dim=1) - among, positives)


def _prototype_log_p(
    x: Tensor, targets: Tensor, bank: Tensor, *, temperature: float, num_negatives: int | None
) -> Tensor:
    """(B, C) log-softmax over prototypes, of which some may be left out."""
    logits = x @ bank.T / temperature
    if num_negatives is not None:
        negatives = logits.detach().masked_fill(targets != 0, -torch.inf)
        bound = negatives.topk(min(num_negatives, len(bank)), dim=1).values[:, -1:]
        kept = (targets != 0) | (negatives >= bound)
        logits = logits.masked_fill(~kept, torch.finfo(logits.dtype).min)
    return F.log_softmax(logits, dim=1)


def _shares(targets: Tensor) -> Tensor:
    """Rows scaled to sum 1; rows of zeros stay zeros."""
    total = targets.sum(dim=1, keepdim=True)
    return targets / torch.where(total == 0, 1, total)


def _divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """(B,) sum_j p_j (log p_j - log(q_j + 1e-8))."""
    return (log_p.exp() * (log_p - torch.log(q + _TARGET_EPS))).sum(dim=1)


def _mean_over_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Mean of the rows that have a target; 0 with a graph where there is none."""
    valid = (targets != 0).any(dim=1)
    return (values * valid).sum() / valid.sum().clamp(min=1)


def _same_label(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """(B, M) bool, true where both labels are equal and known."""
    return (labels_a[:, None] == labels_b[None, :]) & (labels_a != OUTLIER)[:, None]


def _cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean over the rows with a label, written so that no row at all gives a zero with a graph."""
    total = F.cross_entropy(
        logits, labels, ignore_index=OUTLIER, reduction="sum", label_smoothing=smoothing
    )
    return total / count_valid(labels).clamp(min=1)


def _euclidean(x: Tensor) -> Tensor:
    """(B, B) distances; the clamp keeps the square root's gradient finite at zero."""
    squares = x.square().sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2 * (x @ x.T)
    return squared.clamp(min=_MIN_SQUARED_DISTANCE).sqrt()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of the masked entries of each row; 0 where a row has none."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


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
