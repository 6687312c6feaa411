"""Pairs of images whose answer is known: what a calibration is fitted on and measured by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

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
    known = {m: classes_of(split, m) for m in Modality if len(split.rows(m))}
    shares, known = shares_of(known), sampled(known, seed)
    rows = {m: features[one.rows] for m, one in known.items()}
    table: dict[str, dict[str, float]] = {}
    for name, cosines, same in pairs_of(known, rows):
        if name not in calibrated.maps or not 0 < same.mean() < 1:
            continue
        table[name] = {
            measure: expected_error(
                reliability(
                    calibrated.maps[name](cosines, prior=share),
                    same,
                    weights=weights_at(share, same),
                )
            )
            for measure, share in (("ece", shares[name]), ("ece_balanced", 0.5))
        }
    return table


def classes_of(split: Split, modality: Modality) -> Known:
    rows = split.rows(modality)
    rows = rows[split.pids[rows] >= 0]
    return Known(rows, split.pids[rows])


def sampled(known: Mapping[Modality, Known], seed: int) -> dict[Modality, Known]:
    """At most `_MAX_ROWS` of each modality that has any, of two classes at least.

    All rows of some classes, which are the same in every modality, so that equal pairs stay between
    them too; of classes that are larger than that some of their rows.
    """
    known = {m: one for m, one in known.items() if len(one.rows)}
    if max((len(one.rows) for one in known.values()), default=0) <= _MAX_ROWS:
        return known
    random = np.random.default_rng(seed)
    order = random.permutation(np.unique(np.concatenate([x.classes for x in known.values()])))
    fitting = min(_num_fitting(order, one.classes) for one in known.values())
    seen_by = sum(np.isin(order, one.classes).astype(int) for one in known.values())
    shared_first = order[np.argsort(-seen_by, kind="stable")]
    chosen = set(order[:fitting].tolist())
    for one in known.values():
        own = shared_first[np.isin(shared_first, one.classes)].tolist()
        if len(chosen & set(own)) < 2:
            chosen |= set(own[:2])
    return {m: _of(one, list(chosen), random) for m, one in known.items()}


def _of(known: Known, classes: list[int], random: np.random.Generator) -> Known:
    """The rows of some classes, or as many of them as are needed."""
    places = np.flatnonzero(np.isin(known.classes, classes))
    if len(places) > _MAX_ROWS:
        places = np.sort(random.choice(places, _MAX_ROWS, replace=False))
    return Known(known.rows[places], known.classes[places])


def _num_fitting(order: np.ndarray, classes: np.ndarray) -> int:
    """How many of some classes, from the first on, have no more rows than are needed."""
    names, counts = np.unique(classes, return_counts=True)
    places = np.searchsorted(names, order).clip(max=len(names) - 1)
    rows = np.cumsum(np.where(names[places] == order, counts[places], 0))
    return int(np.searchsorted(rows, _MAX_ROWS, side="right"))


def shares_of(known: Mapping[Modality, Known]) -> dict[str, float]:
    """Per pair of modalities, the share of equal ones among all pairs of rows."""
    counts = {m: np.unique(one.classes, return_counts=True) for m, one in known.items()}
    shares = {}
    for one, other in combinations_with_replacement(known, 2):
        _, first, second = np.intersect1d(counts[one][0], counts[other][0], return_indices=True)
        same = one == other
        equal = counts[one][1][first] @ (counts[other][1][second] - same)
        total = len(known[one].rows) * (len(known[other].rows) - same)
        shares[pair_of(one, other)] = float(equal / max(total, 1))
    return shares


def weights_at(share: float, same: np.ndarray) -> np.ndarray:
    """(M,) weights of pairs that give the equal ones among them a share of all."""
    weights: np.ndarray = np.where(same, share / same.sum(), (1 - share) / (~same).sum())
    return weights


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
