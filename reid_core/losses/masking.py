"""What all losses share: precision, validity masks, means over valid rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.types import OUTLIER

_MIN_SQUARED_DISTANCE = 1e-12
_TARGET_EPS = 1e-8
Loss = TypeVar("Loss", bound=Callable[..., Tensor])


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


def count_targets(targets: Tensor) -> Tensor:
    """Number of rows that the prototype losses average over, a scalar int64 tensor."""
    return (targets != 0).any(dim=1).sum()


def same_label(labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """(B, M) bool, true where both labels are equal and known."""
    return (labels_a[:, None] == labels_b[None, :]) & (labels_a != OUTLIER)[:, None]


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean over the rows with a label, written so that no row at all gives a zero with a graph."""
    total = F.cross_entropy(
        logits, labels, ignore_index=OUTLIER, reduction="sum", label_smoothing=smoothing
    )
    return total / count_valid(labels).clamp(min=1)


def euclidean(x: Tensor) -> Tensor:
    """(B, B) distances; the clamp keeps the square root's gradient finite at zero."""
    squares = x.square().sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2 * (x @ x.T)
    return squared.clamp(min=_MIN_SQUARED_DISTANCE).sqrt()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of the masked entries of each row; 0 where a row has none."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def mean_over_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Mean of the rows that have a target; 0 with a graph where there is none."""
    valid = (targets != 0).any(dim=1)
    return (values * valid).sum() / valid.sum().clamp(min=1)


def target_shares(targets: Tensor) -> Tensor:
    """Rows scaled to sum 1; rows of zeros stay zeros."""
    total = targets.sum(dim=1, keepdim=True)
    return targets / torch.where(total == 0, 1, total)


def divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """(B,) sum_j p_j (log p_j - log(q_j + 1e-8))."""
    return (log_p.exp() * (log_p - torch.log(q + _TARGET_EPS))).sum(dim=1)
