"""Who names CCLNet's pairs between epochs: prototypes, a joint clustering, or images.

Everything but the assignment of prototypes is ours, see `Matching.method`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from reid_core import association, clustering, matching
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features, stacked, take
from reid_core.method import BetweenEpochs, Labels
from reid_core.methods.cclnet.coupling import is_coupled, match
from reid_core.methods.cclnet.settings import INPUTS, Config
from reid_core.types import OUTLIER, Modality
from reid_core.whitening import whitened_prototypes

_NONE = np.empty((0, 2), dtype=np.int64)
_BLOCK = 4096  # rows whose probabilities are in memory at a time


def pairs_of_epoch(
    config: Config,
    context: BetweenEpochs,
    prototypes: Mapping[Modality, Tensor],
    features: Mapping[Modality, Features],
    labels: Labels,
) -> tuple[np.ndarray, np.ndarray]:
    """Matched clusters (M, 2) of an epoch, for `named_pairs` or, in the paper, `match`; and
    proposals (M, 2) that contradict each other, where images propose.
    """
    given = config.labels == "identities"
    if config.matching.method == "hungarian" or given or not is_coupled(config, context.epoch):
        return match(config, prototypes, epoch=context.epoch), _NONE
    return named_pairs(config, prototypes, features, labels, search=context.nearest)


def whitened(
    config: Config,
    features: Mapping[Modality, Features],
    labels: Labels,
    prototypes: Mapping[Modality, Tensor],
    *,
    epoch: int,
) -> tuple[Mapping[Modality, Tensor], dict[str, float]]:
    """The prototypes to match, whitened as `matching.whitened` says; 1 or 0 for whether, to log.

    Args:
        config: the method's configuration.
        features: per modality (n, D) unit rows, as matched.
        labels: per modality (n,) clusters; -1 = outlier.
        prototypes: per modality (C, D) unit rows, `to_compare`, without whitening.
        epoch: within the stage; before the first with matches nothing is whitened.

    Reference: ours. Whitening helps where the modalities differ in other directions than
    identities do, and costs elsewhere; how many clusters agree tells which, without any label.
    """
    asked = config.matching.whitened
    if asked == "never" or config.labels == "identities" or not is_coupled(config, epoch):
        return prototypes, {}
    sides = whitened_prototypes([features[m] for m in INPUTS], [labels[m] for m in INPUTS])
    if asked == "agreed":
        plain = matching.mutual_share(*(prototypes[m] for m in INPUTS))
        if matching.mutual_share(*sides) <= plain:
            return prototypes, {"whitened": 0.0}
    return dict(zip(INPUTS, sides, strict=True)), {"whitened": 1.0}


def guarded(
    config: Config, prototypes: Mapping[Modality, Tensor], pairs: np.ndarray, *, share: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pairs, and where clusters agree too little, those of them that are mutual nearest.

    Args:
        config: the method's configuration; `matching.guard` is the least share.
        prototypes: per modality (C, D) unit rows, as matched.
        pairs: (M, 2) of this epoch.
        share: of clusters that are mutual nearest, see `matching.mutual_share`.

    Returns:
        Pairs, and a warning where some were dropped.

    Reference: ours. A one-to-one matcher gives every cluster a partner, also those of identities
    that one modality alone has seen.
    """
    if share >= config.matching.guard or not len(pairs) or config.labels == "identities":
        return pairs, ()
    sides = [prototypes[m] for m in INPUTS]
    remaining = association.pairs_of_both(pairs, matching.mutual_nearest_pairs(*sides))
    return remaining, (
        f"{share:.0%} of the clusters are mutual nearest neighbors, below cclnet.matching.guard="
        f"{config.matching.guard:g}: the cameras seem to have seen different identities, so "
        f"{len(pairs) - len(remaining)} of {len(pairs)} pairs are not coupled",
    )


def named_pairs(
    config: Config,
    banks: Mapping[Modality, Tensor],
    features: Mapping[Modality, Features],
    labels: Mapping[Modality, np.ndarray],
    *,
    search: Search,
) -> tuple[np.ndarray, np.ndarray]:
    """Matched clusters (M, 2), at most one pair per cluster, and contradictory proposals.

    Args:
        config: the method's configuration, whose matching is not "hungarian".
        banks: per modality (C, D) unit prototypes, `to_compare`.
        features: per modality (n, D) unit rows.
        labels: per modality (n,) clusters; -1 = outlier.
        search: for a joint clustering.
    """
    settings = config.matching
    if settings.method in ("consistent", "proposed"):
        return _proposals(config, banks, features, labels)
    if settings.method == "joint":
        return _joint(config, features, labels, search=search), _NONE
    sides = [banks[m] for m in INPUTS]
    if settings.method == "transport":
        plan = association.transport_plan(*sides, temperature=settings.temperature)
        return association.pairs_of_plan(plan), _NONE
    if settings.method == "mutual":
        least = settings.min_similarity
        return matching.mutual_nearest_pairs(*sides, min_similarity=least), _NONE
    if settings.method == "scaled":
        return matching.scaled_pairs(*sides, min_similarity=settings.min_similarity), _NONE
    pairs = matching.hungarian_pairs(*sides, min_similarity=settings.min_similarity)
    joint = _joint(config, features, labels, search=search)
    if settings.method == "both":
        return association.pairs_of_both(pairs, joint), _NONE
    return association.pairs_of_either(joint, pairs), _NONE


def _joint(
    config: Config,
    features: Mapping[Modality, Features],
    labels: Mapping[Modality, np.ndarray],
    *,
    search: Search,
) -> np.ndarray:
    """Clusters of each modality that meet in clusters of both."""
    settings, sizes = config.clustering, [len(features[m]) for m in INPUTS]
    joint = clustering.cluster_jointly(
        stacked([features[m] for m in INPUTS]),
        np.repeat([False, True], sizes),
        k1=settings.k1 + settings.k1 % 2,
        k2=settings.k2,
        eps=config.matching.joint_eps or settings.eps,
        min_samples=settings.min_samples,
        balanced=config.matching.balanced,
        search=search,
    )
    first, second = np.split(joint, sizes[:1])
    visible, infrared = (labels[m] for m in INPUTS)
    overlap = association.joint_overlap(visible, first, infrared, second)
    return association.pairs_of_overlap(overlap, least=config.matching.least_overlap)


def _proposals(
    config: Config,
    banks: Mapping[Modality, Tensor],
    features: Mapping[Modality, Features],
    labels: Mapping[Modality, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that images propose by their likeness to the other modality's prototypes, and those
    that contradict others.

    Reference: WSL-VIReID, phase 2, whose classifiers are the prototypes here.
    """
    proposals = []
    for own, other in (INPUTS, INPUTS[::-1]):
        known = np.flatnonzero(labels[own] != OUTLIER)
        blocks = (
            _probabilities(features[own], rows, banks[other], config.matching.temperature)
            for rows in np.array_split(known, 1 + len(known) // _BLOCK)
        )
        proposals.append(
            association.proposed_pairs(blocks, labels[own][known], num_columns=len(banks[other]))
        )
    verdicts = association.verdicts(*proposals)
    if config.matching.method == "consistent":
        return verdicts.consistent, verdicts.contradictory
    pairs = association.pairs_of_either(verdicts.consistent, _one_to_one(verdicts.single))
    return pairs, verdicts.contradictory


def _probabilities(
    features: Features, rows: np.ndarray, bank: Tensor, temperature: float
) -> np.ndarray:
    """(B, C) of some rows for the prototypes of the other modality."""
    asked = torch.as_tensor(take(features, rows))
    scores = asked @ bank.T.to(asked.device) / temperature
    return torch.softmax(scores, dim=1).cpu().numpy()


def _one_to_one(pairs: np.ndarray) -> np.ndarray:
    """The pairs whose clusters no earlier pair has taken."""
    first_a = np.unique(pairs[:, 0], return_index=True)[1]
    first_b = np.unique(pairs[:, 1], return_index=True)[1]
    return pairs[np.intersect1d(first_a, first_b)]
