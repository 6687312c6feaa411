"""What draws CCLNet's images to the other modality beside the swap: votes, and contradictions.

The cross term contrasts images of one modality with the prototypes of the other, whose images vote
for them; the exclusion term keeps an image away from what nobody has proposed for its cluster. Both
are ours to offer and off by default.

Shapes: n rows of a modality, B rows of a worker's slice with all their views, C clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid_core import losses
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features, stacked
from reid_core.memory import ClusterMemory
from reid_core.method import Labels
from reid_core.methods.cclnet.settings import INPUTS, Config
from reid_core.methods.refinement import Refined, voted
from reid_core.stage import Epoch, Terms
from reid_core.types import OUTLIER, Modality, Term

_CROSS, _PARTNERS, _CONTRADICTORY = "across.", "partners.", "contradictory"
Rows = Mapping[Modality, Tensor]


# Between epochs ----------------------------------------------------------------------------------


def cross_votes(
    config: Config,
    features: Mapping[Modality, Features],
    labels: Labels,
    pairs: np.ndarray,
    *,
    search: Search,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What each modality's rows are told by their neighbors in the other; numbers for the log.

    t(i) is the cluster that row i's cluster is matched with. Rows of a cluster without a partner
    take no part. K neighbors, or as many rows as the smaller modality has.

    Args:
        config: the method's settings.
        features: per modality (n, D) unit rows.
        labels: per modality (n,) clusters; -1 = outlier.
        pairs: (M, 2) matched clusters of this epoch.
        search: finds the voters.

    Reference: N-ULC, stage 2, votes and confidence of the other modality.
    """
    sizes = [len(features[m]) for m in INPUTS]
    num = min(config.refine.neighbors, *sizes)
    together = stacked([features[m] for m in INPUTS])
    nearest = search(together, 2 * num, is_second=np.repeat([False, True], sizes)).rows
    of_other = {
        INPUTS[0]: nearest[: sizes[0], num:] - sizes[0],
        INPUTS[1]: nearest[sizes[0] :, :num],
    }
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for side, (m, other) in enumerate((INPUTS, INPUTS[::-1])):
        partners = np.full(labels[m].max(initial=OUTLIER) + 1, OUTLIER, dtype=np.int64)
        partners[pairs[:, side]] = pairs[:, 1 - side]
        given = np.where(labels[m] == OUTLIER, OUTLIER, partners[labels[m].clip(min=0)])
        of_side, numbers = voted(config.refine, m, of_other[m], given, labels[other])
        arrays |= {f"{_CROSS}{name}": x for name, x in of_side.items()}
        arrays[f"{_CROSS}{_PARTNERS}{m}"] = partners
        counts |= {f"across_{name}": x for name, x in numbers.items()}
    return arrays, counts


def of_contradictions(pairs: np.ndarray) -> dict[str, np.ndarray]:
    """The array that tells stages of contradictory proposals (M, 2)."""
    return {_CROSS + _CONTRADICTORY: pairs}


# Within an epoch ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Across:
    """An epoch's cross term and exclusion, on the device of the banks.

    Attributes:
        modality: whose rows are drawn to the other's prototypes in this epoch, None for nobody's.
        votes: of these rows.
        partners: (C,) the matched cluster of each of their clusters; -1 = none.
        proposed: (C_visible, C_infrared) bool, contradictory proposals; None without any.
    """

    modality: Modality | None
    votes: Refined | None
    partners: Tensor
    proposed: Tensor | None

    @staticmethod
    def of(config: Config, epoch: Epoch, number: int, device: torch.device) -> Across | None:
        """From what was decided between epochs; None where nothing was.

        Args:
            config: the method's settings.
            epoch: what the workers are told.
            number: of the epoch within the stage: even ones are of visible rows, odd of infrared.
            device: of the banks.
        """
        arrays = {
            name.removeprefix(_CROSS): x
            for name, x in epoch.arrays.items()
            if name.startswith(_CROSS)
        }
        if not arrays:
            return None
        m = INPUTS[number % len(INPUTS)]
        partners = torch.tensor(arrays.get(f"{_PARTNERS}{m}", np.empty(0, int)), device=device)
        votes, proposed = Refined.of(arrays, m, device), None
        contradictory = arrays.get(_CONTRADICTORY, np.empty((0, 2), int))
        if number >= config.matching.exclusion_from and len(contradictory):
            shape = [len(epoch.prototypes[m]) for m in INPUTS]
            proposed = torch.zeros(shape, dtype=torch.bool, device=device)
            proposed[tuple(torch.tensor(contradictory, device=device).T)] = True
        return Across(m if votes is not None else None, votes, partners, proposed)

    def terms(
        self,
        config: Config,
        x: Rows,
        labels: Rows,
        memories: Mapping[Modality, ClusterMemory],
        *,
        rows: Rows,
    ) -> Terms:
        """lambda X_m and the exclusion of visible rows, means over the rows that take part.

        Args:
            config: the method's settings.
            x: per modality (B, D) unit rows.
            labels: per modality (B,) clusters; -1 = outlier.
            memories: per modality, this epoch's prototypes.
            rows: per modality (B,) rows of the modality, to look up votes.

        Reference: N-ULC, the cross term of stage 2; WSL-VIReID, contradictory relations.
        """
        terms: Terms = {}
        if self.modality is not None and self.votes is not None:
            m, bank = self.modality, memories[_other(self.modality)]
            given = self._partners_of(labels[m])
            loss = losses.scored_contrast(
                x[m],
                self.votes.targets(rows[m], given, len(bank.bank), config.refine),
                bank.bank,
                temperature=bank.temperature,
                weights=self.votes.weights[rows[m]] if config.refine.weights else None,
            )
            terms[f"{m}_across"] = Term(loss, losses.count_valid(given), config.refine.cross)
        if self.proposed is not None:
            visible, infrared = INPUTS
            y = labels[visible]
            of_rows = self.proposed[y.clamp(min=0)] & (y != OUTLIER)[:, None]
            loss = losses.exclusion(memories[infrared].scores(x[visible]), of_rows)
            count = of_rows.any(dim=1).sum()
            terms["visible_exclusion"] = Term(loss, count, config.matching.exclusion)
        return terms

    def update(
        self,
        config: Config,
        memories: Mapping[Modality, ClusterMemory],
        x: Rows,
        labels: Rows,
        *,
        repeats: Mapping[Modality, int],
    ) -> None:
        """With `refine.cross_updates` rows move the prototypes that they were drawn to.

        Called before their own update, as in the public code, with the rows of all workers.
        """
        if self.modality is None or not config.refine.cross_updates:
            return
        m = self.modality
        memories[_other(m)].update(x[m], self._partners_of(labels[m]), most=repeats.get(m))

    def _partners_of(self, labels: Tensor) -> Tensor:
        return torch.where(labels == OUTLIER, OUTLIER, self.partners[labels.clamp(min=0)])


def _other(modality: Modality) -> Modality:
    return INPUTS[1 - INPUTS.index(modality)]
