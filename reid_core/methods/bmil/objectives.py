"""What BMIL's images are drawn to: the losses of both kinds of steps, and the move of prototypes.

Shapes: B rows of a worker's slice, V views of a row, C clusters of a modality, J joint labels, P
proxies, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid_core import losses
from reid_core.memory import HybridMemory
from reid_core.methods.bmil.settings import INPUTS, Config
from reid_core.methods.refinement import Refined
from reid_core.stage import Gather, Terms, gather_together
from reid_core.types import OUTLIER, Modality, Term

Rows = Mapping[Modality, Tensor]
Votes = Mapping[Modality, Refined | None]


@dataclass(frozen=True)
class ProxyTable:
    """The proxies of an epoch on the device of the banks.

    Attributes:
        of_label: per modality (J,) proxy of each joint label, -1 where it has none there.
        owners, members: per modality, the labels that have a proxy there, and these proxies.
        shares: (J,) of each of a label's proxies in what is drawn to the label: 1, or 1/2 of two.
        num_proxies: P.
    """

    of_label: dict[Modality, Tensor]
    owners: dict[Modality, Tensor]
    members: dict[Modality, Tensor]
    shares: Tensor
    num_proxies: int

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray], device: torch.device) -> ProxyTable:
        """From what `between_epochs` decided."""
        given = {m: arrays[f"proxies.{m}"] for m in INPUTS}
        of_label = {m: torch.tensor(x, device=device) for m, x in given.items()}
        has = {m: np.flatnonzero(x != OUTLIER) for m, x in given.items()}
        owners = {m: torch.tensor(x, device=device) for m, x in has.items()}
        members = {m: torch.tensor(given[m][x], device=device) for m, x in has.items()}
        labels = torch.tensor(arrays["proxy_labels"], device=device)
        counts = torch.bincount(labels, minlength=len(of_label[INPUTS[0]]))
        return ProxyTable(of_label, owners, members, 1 / counts.clamp(min=1), len(labels))

    def of_rows(self, modality: Modality, labels: Tensor) -> Tensor:
        """(B,) proxies that rows of a modality move; -1 stays."""
        proxies = self.of_label[modality][labels.clamp(min=0)]
        return torch.where(labels == OUTLIER, OUTLIER, proxies)

    def targets(self, labels: Tensor) -> Tensor:
        """(B, P) targets of rows with hard labels; zeros for -1."""
        known = labels.clamp(min=0)
        # a place behind the last takes what no proxy does
        targets = self.shares.new_zeros(len(labels), self.num_proxies + 1)
        for of_label in self.of_label.values():
            proxies = torch.where(labels == OUTLIER, OUTLIER, of_label[known]) % targets.shape[1]
            targets.scatter_(1, proxies[:, None], self.shares[known][:, None])
        return targets[:, :-1]

    def spread(self, of_labels: Tensor) -> Tensor:
        """(B, J) targets over joint labels to (B, P): a label's proxies share its part."""
        targets = of_labels.new_zeros(len(of_labels), self.num_proxies)
        shared = of_labels * self.shares.to(of_labels.dtype)
        for m, members in self.members.items():
            targets.index_copy_(1, members, shared.index_select(1, self.owners[m]))
        return targets


def separate_terms(
    config: Config,
    x: Rows,
    labels: Rows,
    memories: Mapping[Modality, HybridMemory],
    *,
    rows: Rows,
    votes: Votes,
    gather: Gather,
) -> Terms:
    """L = L_v + L_r, L_m = (CE(hard bank) + relu(CE(mean bank) - margin)) / 2.

    CE is the mean over all views of the modality's rows; the relu acts on the mean of the global
    batch, so that below the margin the mean bank gives no gradient.

    Args:
        config: the method's settings.
        x: per modality (B, V, D) unit rows.
        labels: per modality (B,) clusters of the modality.
        memories: per modality, this epoch's prototypes.
        rows: per modality (B,) rows of the modality, to look up votes.
        votes: per modality what neighbors have voted for; None for hard labels.
        gather: see `Gather`.

    Reference: BMIL, both stages, the loss on separate labels.
    """
    terms: Terms = {}
    means: dict[Modality, Tensor] = {}
    counts: dict[Modality, Tensor] = {}
    banks, weight = config.memory.banks, 0.5 if config.memory.banks == "both" else 1.0
    for m in INPUTS:
        units, y = x[m].flatten(0, 1), labels[m].repeat_interleave(x[m].shape[1])
        of_rows = rows[m].repeat_interleave(x[m].shape[1])
        counts[m] = losses.count_valid(y)
        if banks != "mean":
            hard = _cluster_loss(config, units, y, memories[m].hard, of_rows, votes[m])
            terms[f"{m}_hard"] = Term(hard, counts[m], weight)
        if banks != "hard":
            means[m] = _cluster_loss(config, units, y, memories[m].mean, of_rows, votes[m])
            terms[f"{m}_mean"] = Term(means[m], counts[m], weight)  # in its place among the sums
    if means:
        for m, beyond in beyond_margin(means, counts, config.memory.margin, gather).items():
            terms[f"{m}_mean"] = Term(beyond, counts[m], weight)
    return terms


def beyond_margin(
    means: Rows, counts: Rows, margin: float, gather: Gather
) -> dict[Modality, Tensor]:
    """This worker's part of relu(global mean - margin), of both modalities in one exchange.

    Every worker adds its own mean minus the margin, or nothing, as the global mean decides: their
    mean, weighted by the counts, is the relu.

    Args:
        means: per modality a scalar, of this worker's rows; counts: how many they are.
        margin: at or below which nothing is left.
        gather: see `Gather`.
    """
    own = [torch.stack([x.detach() * counts[m], counts[m].to(x.dtype)]) for m, x in means.items()]
    sums = gather(torch.stack(own)[None]).sum(dim=0)
    are_beyond = sums[:, 0] / sums[:, 1].clamp(min=1) > margin
    return {
        m: is_beyond * (mean - margin)
        for (m, mean), is_beyond in zip(means.items(), are_beyond, strict=True)
    }


def joint_terms(
    config: Config,
    x: Rows,
    labels: Rows,
    memory: HybridMemory,
    proxies: ProxyTable,
    *,
    rows: Rows,
    votes: Votes,
    gather: Gather,
) -> Terms:
    """L = (G_v + G_r) / 2, G_m the mean over both banks of the global loss.

    Args:
        config, x, rows, votes, gather: as in `separate_terms`.
        labels: per modality (B,) joint labels.
        memory: this epoch's proxies.
        proxies: whose proxies they are.

    Reference: BMIL, stage 2, the global loss.
    """
    banks = ("hard", "mean") if config.memory.banks == "both" else (config.memory.banks,)
    terms: Terms = {}
    for m in INPUTS:
        units, y = x[m].flatten(0, 1), labels[m].repeat_interleave(x[m].shape[1])
        of_rows = rows[m].repeat_interleave(x[m].shape[1])
        targets, weights = proxies.targets(y), None
        voted = votes[m]
        if voted is not None:
            # a vote for a label is one for all of its proxies alike
            of_labels = voted.targets(of_rows, y, len(proxies.shares), config.refine)
            targets = proxies.spread(of_labels.to(proxies.shares.dtype))
            weights = voted.weights[of_rows] if config.refine.weights else None
        differentiated = memory
        if config.memory.gradient == "as_published" and m == Modality.INFRARED:
            differentiated = _moved_by_visible(x, labels, memory, proxies, gather)
        sides = _sides(config, proxies)
        for name in banks:
            halves = _in_two_halves(units, getattr(memory, name), getattr(differentiated, name))
            for side, members in sides.items():
                bank, of_side = halves[1], targets
                if members is not None:
                    bank, of_side = bank[members], targets[:, members]
                loss = losses.scored_contrast(
                    halves[0],
                    of_side,
                    bank,
                    temperature=config.memory.temperature,
                    num_scored=config.memory.scored,
                    weights=weights,
                )
                weight = 0.5 / (len(banks) * len(sides))
                terms[f"{m}_joint_{name}{side}"] = Term(loss, losses.count_targets(of_side), weight)
    return terms


def move(memories: Mapping[Modality, HybridMemory], x: Rows, labels: Rows, gather: Gather) -> None:
    """Moves the prototypes of each modality by all views of its rows in the global batch."""
    for m, (units, of_units) in _of_everyone(x, labels, gather).items():
        memories[m].update(units, of_units)


def move_jointly(
    memory: HybridMemory, proxies: ProxyTable, x: Rows, labels: Rows, gather: Gather
) -> None:
    """Moves the proxies of both modalities at once, each by the rows of its own modality."""
    everyone = _of_everyone(x, labels, gather)
    moved = [proxies.of_rows(m, of_units) for m, (_, of_units) in everyone.items()]
    memory.update(torch.cat([units for units, _ in everyone.values()]), torch.cat(moved))


def _of_everyone(x: Rows, labels: Rows, gather: Gather) -> dict[Modality, tuple[Tensor, Tensor]]:
    """All views (G V, D) of the global batch's rows and their labels (G V,), in one exchange."""
    whole = gather_together(gather, *x.values(), *(labels[m] for m in x))
    return {
        m: (of_rows.flatten(0, 1), y.repeat_interleave(of_rows.shape[1]))
        for m, of_rows, y in zip(x, whole[: len(x)], whole[len(x) :], strict=True)
    }


def _sides(config: Config, proxies: ProxyTable) -> dict[str, Tensor | None]:
    """The proxies of each softmax, under what its term is called beyond the bank."""
    if config.memory.softmax == "all":
        return {"": None}
    return {f"_to_{m}": members for m, members in proxies.members.items()}


def _cluster_loss(
    config: Config, x: Tensor, labels: Tensor, bank: Tensor, rows: Tensor, votes: Refined | None
) -> Tensor:
    temperature = config.memory.temperature
    if votes is None:
        return losses.cluster_contrast(x, labels, bank, temperature=temperature)
    return losses.scored_contrast(
        x,
        votes.targets(rows, labels, len(bank), config.refine),
        bank,
        temperature=temperature,
        weights=votes.weights[rows] if config.refine.weights else None,
    )


def _moved_by_visible(
    x: Rows, labels: Rows, memory: HybridMemory, proxies: ProxyTable, gather: Gather
) -> HybridMemory:
    """The banks as the public code leaves them after its backward pass of the visible images."""
    moved = copy(memory)
    visible = {Modality.VISIBLE: x[Modality.VISIBLE].detach()}
    move_jointly(moved, proxies, visible, labels, gather)
    return moved


def _in_two_halves(x: Tensor, bank: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and prototypes whose products are x bank^T with the gradient of x moved^T."""
    if moved is bank:
        return x, bank
    fixed = x.detach()
    return torch.cat([fixed, x - fixed], dim=1), torch.cat([bank, moved], dim=1)
