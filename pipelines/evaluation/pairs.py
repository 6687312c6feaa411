"""Pairs of images whose answer is known: what a calibration is fitted on and measured by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.calibrated import Calibrated, pair_of
from reid_core.calibration import expected_error, reliability
from reid_core.types import Modality, Split

_MAX_ROWS = 3000  # of a modality; their pairs are all that is needed


@dataclass(frozen=True)
class Known:
    """Samples whose classes are known: (n,) each, of one modality; -1 classes are left out."""

    rows: np.ndarray
    classes: np.ndarray


def errors(
    calibrated: Calibrated, split: Split, features: np.ndarray, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Expected calibration error on other identities, per pair of modalities.

    Args:
        calibrated: fitted before.
        split: whose pids are known.
        features: (N, D) unit rows.
        seed: of the sample, where there are more rows than needed.

    Returns:
        "ece": at the split's own share of equal pairs; "ece_balanced": as if that were a half.
    """
    known = {m: sampled(classes_of(split, m), seed) for m in Modality if len(split.rows(m))}
    rows = {m: features[one.rows] for m, one in known.items()}
    table: dict[str, dict[str, float]] = {}
    for name, cosines, same in pairs_of(known, rows):
        if name not in calibrated.maps or not 0 < same.mean() < 1:
            continue
        weights = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
        own = calibrated.maps[name](cosines, prior=float(same.mean()))
        even = calibrated.maps[name](cosines, prior=0.5)
        table[name] = {
            "ece": expected_error(reliability(own, same)),
            "ece_balanced": expected_error(reliability(even, same, weights=weights)),
        }
    return table


def classes_of(split: Split, modality: Modality) -> Known:
    rows = split.rows(modality)
    rows = rows[split.pids[rows] >= 0]
    return Known(rows, split.pids[rows])


def sampled(known: Known, seed: int) -> Known:
    """At most `_MAX_ROWS`, whole classes of them, so that equal pairs stay."""
    if len(known.rows) <= _MAX_ROWS:
        return known
    classes, counts = np.unique(known.classes, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    chosen = classes[order[: max(int(np.searchsorted(np.cumsum(counts[order]), _MAX_ROWS)), 1)]]
    remaining = np.isin(known.classes, chosen)
    return Known(known.rows[remaining], known.classes[remaining])


def pairs_of(
    known: dict[Modality, Known], features: dict[Modality, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Per pair of modalities: its name, the cosines of all pairs and whether they are equal."""
    names = list(known)
    for i, one in enumerate(names):
        for other in names[i:]:
            cosines = features[one] @ features[other].T
            same = np.equal.outer(known[one].classes, known[other].classes)
            chosen = np.triu_indices(len(cosines), 1) if one == other else np.indices(same.shape)
            yield pair_of(one, other), cosines[tuple(chosen)].ravel(), same[tuple(chosen)].ravel()
