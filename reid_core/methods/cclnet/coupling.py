"""How CCLNet couples the modalities: which prototypes match, and how they change places.

Reference: CCLNet, stages 0 and 2, whose scripts both swap.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from reid_core import matching, memory
from reid_core.memory import ClusterMemory
from reid_core.methods.cclnet.settings import INPUTS, Config, is_ever_coupled, shares_prototypes
from reid_core.types import OUTLIER, Modality


def identities_of_both(
    labels: Mapping[Modality, np.ndarray],
) -> tuple[dict[Modality, np.ndarray], tuple[str, ...]]:
    """Given classes without the identities of one modality only, who share no prototype with
    anyone.

    Args:
        labels: per modality (n,) identities, the same numbers in both; -1 = unknown.

    Returns:
        Per modality (n,) int64, the identities of both numbered from 0 alike in both, -1 elsewhere;
        and a warning that says how many were left out, if any.

    Raises:
        ValueError: nobody was seen in both modalities.
    """
    visible, infrared = (np.setdiff1d(labels[m], [OUTLIER]) for m in INPUTS)
    both = np.intersect1d(visible, infrared)
    num_identities = len(np.union1d(visible, infrared))
    if not len(both):
        raise ValueError(
            f"none of {num_identities} identities was seen in both modalities: "
            "cclnet.labels=identities gives each one prototype for both; check the labels"
        )
    warning = (
        f"{num_identities - len(both)} of {num_identities} identities were seen in one modality "
        "only: cclnet.labels=identities never draws them"
    )
    numbered = {
        m: np.where(np.isin(labels[m], both), np.searchsorted(both, labels[m]), OUTLIER)
        for m in INPUTS
    }
    return numbered, (warning,) if len(both) < num_identities else ()


def is_coupled(config: Config, epoch: int) -> bool:
    """Whether prototypes are matched in an epoch."""
    return is_ever_coupled(config) and epoch >= config.swap.start_epoch


def couples_between_epochs(config: Config) -> bool:
    """Whether matched prototypes swap, or become one, before an epoch's first batch."""
    return shares_prototypes(config) or config.swap.when in ("epoch", "epoch_once")


def couples_in_steps(config: Config) -> bool:
    """Whether matched prototypes swap, or become one again, after every update."""
    return shares_prototypes(config) or config.swap.when in ("epoch", "step")


def matches_in_steps(config: Config) -> bool:
    """Whether pairs are matched anew in every step, instead of once between epochs."""
    return not shares_prototypes(config) and config.swap.when == "step"


def to_compare(config: Config, banks: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
    """The prototypes as matches, the guard and the share of mutual nearest see them."""
    return {
        m: matching.centered(banks[m]) if config.matching.centered else banks[m] for m in INPUTS
    }


def match(config: Config, banks: Mapping[Modality, Tensor], *, epoch: int) -> np.ndarray:
    """Matched clusters (M, 2) of two banks, given `to_compare`; empty before swapping starts.

    With given identities, equal classes are the pairs.
    """
    if config.labels == "identities":
        both = min(len(banks[m]) for m in INPUTS)
        return np.repeat(np.arange(both, dtype=np.int64)[:, None], 2, axis=1)
    if not is_coupled(config, epoch):
        return np.empty((0, 2), dtype=np.int64)
    sides = [banks[m] for m in INPUTS]
    return matching.hungarian_pairs(*sides, min_similarity=config.matching.min_similarity)


def couple(
    config: Config, banks: Mapping[Modality, Tensor], pairs: np.ndarray
) -> dict[Modality, Tensor]:
    """Swap, or share, the prototypes of all given pairs."""
    visible, infrared = (banks[m] for m in INPUTS)
    if shares_prototypes(config):
        new = memory.share(visible, infrared, pairs)
    elif config.swap.order == "sequential":
        new = memory.swap_sequential(visible, infrared, pairs, keep=config.swap.keep)
    else:
        new = memory.swap(visible, infrared, pairs, keep=config.swap.keep)
    return dict(zip(INPUTS, new, strict=True))


def update(
    config: Config,
    memories: Mapping[Modality, ClusterMemory],
    x: Mapping[Modality, Tensor],
    labels: Mapping[Modality, Tensor],
    *,
    pairs: memory.Pairs,
    epoch: int,
    repeats: Mapping[Modality, int],
) -> None:
    """Momentum update of both banks with the global batch, then the swap, in place.

    Called after `backward`, with the features of all workers in (rank, position) order, so that
    every worker applies the same update.

    Args:
        config: the method's configuration.
        memories: per modality, this worker's replica of the bank.
        x: per modality (B, D) unit rows of the global batch.
        labels: per modality (B,).
        pairs: this epoch's matched clusters (M, 2).
        epoch: epoch number within the stage, from 0.
        repeats: per modality, rows of one cluster in a batch at most; see `ClusterMemory.update`.
    """
    for m in INPUTS:
        memories[m].update(x[m], labels[m], most=repeats.get(m))
    if not couples_in_steps(config):
        return
    if matches_in_steps(config):
        banks = to_compare(config, {m: memories[m].bank for m in INPUTS})
        matched = match(config, banks, epoch=epoch)
        pairs = torch.from_numpy(matched).to(memories[INPUTS[0]].bank.device)
    if not len(pairs):
        return
    visible, infrared = (memories[m] for m in INPUTS)
    if shares_prototypes(config):
        visible.bank, infrared.bank = memory.share(visible.bank, infrared.bank, pairs)
        return
    swap_rows = {
        "simultaneous": memory.swap_rows,
        "sequential": memory.swap_rows_sequential,
    }[config.swap.order]
    visible.bank, infrared.bank = swap_rows(
        visible.bank,
        infrared.bank,
        pairs,
        labels[Modality.VISIBLE],
        labels[Modality.INFRARED],
        keep=config.swap.keep,
    )
