"""What the protocol of a data set can measure on a split, found by drawing its trials."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from reid_core.datasets import LAYOUTS
from reid_core.protocols import num_matched
from reid_core.types import Modality, Split


@dataclass(frozen=True)
class Measurable:
    """Queries of one kind of trial.

    Attributes:
        matched: queries with a right answer in the gallery, in the first trial.
        total: all queries.
    """

    matched: int
    total: int


def measurable(kind: str, split: Split, embedded: Collection[Modality]) -> dict[str, Measurable]:
    """Per name of a protocol's trials, how many queries could be answered.

    Args:
        kind: whose protocol.
        split: its rows.
        embedded: modalities that the encoder turns into features.

    Raises:
        ValueError: the split lacks what the protocol needs, or the encoder embeds no such rows.
    """
    counts: dict[str, Measurable] = {}
    modalities = np.array([str(sample.modality) for sample in split.samples])
    for trial in LAYOUTS[kind].protocol(split):
        if trial.name not in counts:
            asked = set(modalities[trial.query]) | set(modalities[trial.gallery])
            if other := sorted(asked - set(map(str, embedded))):
                raise ValueError(
                    f"{trial.name} compares {' and '.join(other)} rows, the encoder embeds "
                    f"{' and '.join(embedded)}"
                )
            matched = num_matched(split.pids, trial)
            counts[trial.name] = Measurable(matched, len(trial.query))
    return counts


def why_unmeasured(kind: str, split: Split, embedded: Collection[Modality]) -> str:
    """In words, why the headline of a data set cannot be measured on a split; "" where it can."""
    if not len(split):
        return "there are no identities"
    try:
        headline = measurable(kind, split, embedded)[LAYOUTS[kind].headline]
    except ValueError as error:
        return f"nothing can be measured: {error}"
    if headline.matched:
        return ""
    return (
        f"none of the {headline.total:,} queries has a match in the gallery: no identity stands on "
        "both sides"
    )
