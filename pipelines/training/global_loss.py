"""From loss terms to one scalar whose gradient does not depend on the number of workers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipelines.distributed import collectives
from pipelines.errors import UserError
from reid_core.types import Term


class Means:
    """Means of the loss terms over an epoch and all workers."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, names: tuple[str, ...], weighted_sums: Tensor, counts: Tensor) -> None:
        """Add one step's sums (T,) over rows and numbers (T,) of rows of all terms."""
        pairs = torch.stack([weighted_sums.detach(), counts]).double()
        self._sums[names] = self._sums[names] + pairs if names in self._sums else pairs

    def state_dict(self) -> dict[str, Tensor]:
        """Sums (2, T) of all workers, per group of terms; every worker must ask.

        Raises:
            UserError: a loss that is not finite: what was trained on it must not be kept.
        """
        everywhere = {n: collectives.sum_over_workers(x).cpu() for n, x in self._sums.items()}
        for names, sums in everywhere.items():
            _require_finite(dict(zip(names, sums[0].tolist(), strict=True)))
        return {json.dumps(names): sums for names, sums in everywhere.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """What all workers had, for one of them; zeros in its place for the others."""
        self._sums = {tuple(json.loads(names)): x.to(device) for names, x in state.items()}

    def read(self) -> dict[str, float]:
        """Mean of each term, and their weighted "total" under its own name.

        Raises:
            UserError: a loss that is not finite.
        """
        if not self._sums:
            return {}
        names = [name for group in self._sums for name in group]
        everywhere = collectives.sum_over_workers(torch.cat(list(self._sums.values()), dim=1))
        pairs: dict[str, tuple[float, float]] = {}
        for name, total, count in zip(names, *everywhere.tolist(), strict=True):
            before = pairs.get(name, (0.0, 0.0))
            pairs[name] = before[0] + total, before[1] + count
        means = {name: total / count if count else 0.0 for name, (total, count) in pairs.items()}
        _require_finite(means)
        return means


def _require_finite(values: Mapping[str, float]) -> None:
    if broken := [name for name, value in values.items() if not np.isfinite(value)]:
        raise UserError(f"the loss is not finite ({', '.join(broken)}): lower the learning rate")


def total_loss(terms: Mapping[str, Term], means: Means) -> Tensor:
    """Weighted sum of the terms, scaled so that the average over workers is the global mean.

    DDP averages gradients over workers. A mean over valid rows must therefore be this worker's
    sum times the number of workers over the *global* number of valid rows.
    """
    each = list(terms.values())
    means_here = torch.stack([term.mean for term in each])
    counts = torch.stack([_as_float(term.count, means_here.device) for term in each])
    everywhere = collectives.sum_over_workers(counts)
    scale = collectives.world_size() * counts / everywhere.clamp_min(1)
    total = torch.zeros_like(means_here[0])
    for index, term in enumerate(each):
        total = total + term.weight * scale[index] * means_here[index]
    most = everywhere.max()
    sums = torch.cat([means_here.detach() * counts, (total.detach() * most)[None]])
    means.add((*terms, "total"), sums, torch.cat([counts, most[None]]))
    return total


def _as_float(count: Tensor | int, device: torch.device) -> Tensor:
    """A scalar on the device; a number is written there, not copied."""
    if isinstance(count, Tensor):
        return count.float()
    return torch.full((), float(count), device=device)
