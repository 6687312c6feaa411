"""From loss terms to one scalar whose gradient does not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipelines.distributed import collectives
from reid_core.types import Term


class Means:
    """Means of the loss terms over an epoch and all workers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, weighted_sum: Tensor, count: Tensor) -> None:
        """Add one step's sum over rows and its number of rows."""
        pair = torch.stack([weighted_sum.detach(), count]).double()
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self) -> dict[str, float]:
        """Mean of each term, and their weighted "total" under its own name.

        Raises:
            RuntimeError: a loss that is not finite.
        """
        means = {}
        for name, pair in self._sums.items():
            total, count = collectives.sum_over_workers(pair).tolist()
            means[name] = total / count if count else 0.0
        broken = [name for name, mean in means.items() if not np.isfinite(mean)]
        if broken:
            raise RuntimeError(
                f"the loss is not finite ({', '.join(broken)}): lower the learning rate"
            )
        return means


def total_loss(terms: Mapping[str, Term], means: Means) -> Tensor:
    """Weighted sum of the terms, scaled so that the average over workers is the global mean.

    DDP averages gradients over workers. A mean over valid rows must therefore be this worker's
    sum times the number of workers over the *global* number of valid rows.
    """
    first = next(iter(terms.values())).mean
    counts = torch.stack(
        [torch.as_tensor(term.count, device=first.device).float() for term in terms.values()]
    )
    everywhere = collectives.sum_over_workers(counts)
    scale = collectives.world_size() * counts / everywhere.clamp_min(1)
    total = torch.zeros_like(first)
    for index, (name, term) in enumerate(terms.items()):
        total = total + term.weight * scale[index] * term.mean
        means.add(name, term.mean * counts[index], counts[index])
    means.add("total", total * everywhere.max(), everywhere.max())
    return total
