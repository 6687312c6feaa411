"""Fitting what a cosine means: on validation identities, else on the last epoch's pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.prepare import read
from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated, pair_of, save
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.evaluation.evaluate import features_of
from pipelines.runs import checkpoint
from reid_core.calibration import Calibration, expected_error, fit, reliability
from reid_core.types import OUTLIER, Dataset, Modality, Split

VALIDATION, PSEUDO = "validation identities", "pseudo-labels"
_MAX_ROWS = 3000  # of a modality; their pairs are all that is needed


@dataclass(frozen=True)
class _Known:
    """Samples whose classes are known: (n,) each, of one modality; -1 classes are left out."""

    rows: np.ndarray
    classes: np.ndarray


def calibrate(path: Path, *, labels: str = "auto", seed: int = 0) -> Calibrated:
    """Fit and keep P(same identity | cosine) per pair of modalities.

    Args:
        path: checkpoint folder or run directory.
        labels: "val", "pseudo", or "auto": validation identities where there are some.
        seed: of the sample, where there are more rows than needed.

    Raises:
        UserError: neither validation identities nor pseudo-labels, or the data are not there.
    """
    if labels not in ("auto", "val", "pseudo"):
        raise UserError(f"--labels {labels}: choose auto, val or pseudo")
    loaded = open_encoder(path)
    dataset = read(loaded.config)
    source = VALIDATION
    known = {} if labels == "pseudo" else _validation(dataset, loaded)
    split = dataset.val
    if not known:
        if labels == "val":
            raise UserError(f"{dataset.root} has no validation identities: --labels pseudo")
        source, split = PSEUDO, dataset.train
        known = _pseudo(path, dataset, loaded)
    known = {m: _sampled(one, seed) for m, one in known.items()}
    features = _features(loaded, split, dataset.root, known)
    maps: dict[str, Calibration] = {}
    tables: dict[str, np.ndarray] = {}
    for name, cosines, same in _pairs(known, features):
        try:
            maps[name] = fit(cosines, same)
        except ValueError:
            continue  # no equal or no different pair of these modalities
        tables[name] = reliability(maps[name](cosines), same)
    if not maps:
        raise UserError("no pair of images of one identity: nothing can be calibrated")
    calibrated = Calibrated(
        fingerprint=loaded.fingerprint,
        source=source,
        maps=maps,
        error={name: expected_error(one) for name, one in tables.items()},
        reliability={name: one[one[:, 0] > 0].tolist() for name, one in tables.items()},
    )
    save(path, calibrated)
    return calibrated


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
    known = {m: _sampled(_classes_of(split, m), seed) for m in Modality if len(split.rows(m))}
    rows = {m: features[one.rows] for m, one in known.items()}
    table: dict[str, dict[str, float]] = {}
    for name, cosines, same in _pairs(known, rows):
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


def _validation(dataset: Dataset, loaded: LoadedEncoder) -> dict[Modality, _Known]:
    known = {m: _classes_of(dataset.val, m) for m in loaded.modalities}
    return {m: one for m, one in known.items() if len(one.rows)}


def _classes_of(split: Split, modality: Modality) -> _Known:
    rows = split.rows(modality)
    rows = rows[split.pids[rows] >= 0]
    return _Known(rows, split.pids[rows])


def _pseudo(path: Path, dataset: Dataset, loaded: LoadedEncoder) -> dict[Modality, _Known]:
    """Clusters of the last epoch; those of a matched pair are one class."""
    epoch = checkpoint.load(checkpoint.find(path)).get("epoch", {})
    known: dict[Modality, _Known] = {}
    offset = 0
    for m in loaded.modalities:
        labels = epoch.get(f"labels.{m}")
        rows = dataset.train.rows(m)
        if labels is None or len(labels) != len(rows):
            continue
        classes = labels.numpy().astype(np.int64)
        kept = classes != OUTLIER
        known[m] = _Known(rows[kept], classes[kept] + offset)
        offset += int(classes.max(initial=-1)) + 1
    if not known:
        raise UserError(
            f"{path} keeps no pseudo-labels of {dataset.root}, and there are no validation "
            "identities: calibrate with a data set that has some"
        )
    pairs = epoch.get("pairs")
    if pairs is not None and len(known) > 1:
        _join(known, pairs.numpy())
    return known


def _join(known: dict[Modality, _Known], pairs: np.ndarray) -> None:
    """Give the second modality's clusters the classes that they are matched with."""
    first, second = list(known)[:2]
    start = int(known[second].classes.min(initial=0)) if len(known[second].classes) else 0
    classes = known[second].classes.copy()
    for one, other in pairs:
        classes[known[second].classes == other + start] = one
    known[second] = _Known(known[second].rows, classes)
    assert first != second


def _sampled(known: _Known, seed: int) -> _Known:
    """At most `_MAX_ROWS`, whole classes of them, so that equal pairs stay."""
    if len(known.rows) <= _MAX_ROWS:
        return known
    order = np.random.default_rng(seed).permutation(np.unique(known.classes))
    counts = np.array([(known.classes == one).sum() for one in order])
    chosen = order[: max(int(np.searchsorted(np.cumsum(counts), _MAX_ROWS)), 1)]
    kept = np.isin(known.classes, chosen)
    return _Known(known.rows[kept], known.classes[kept])


def _features(
    loaded: LoadedEncoder, split: Split, root: Path, known: dict[Modality, _Known]
) -> dict[Modality, np.ndarray]:
    rows = np.sort(np.concatenate([one.rows for one in known.values()]))
    found = features_of(loaded, split.take(rows), root)
    return {m: found[np.searchsorted(rows, one.rows)] for m, one in known.items()}


def _pairs(
    known: dict[Modality, _Known], features: dict[Modality, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Per pair of modalities: its name, the cosines of all pairs and whether they are equal."""
    names = list(known)
    for i, one in enumerate(names):
        for other in names[i:]:
            cosines = features[one] @ features[other].T
            same = np.equal.outer(known[one].classes, known[other].classes)
            chosen = np.triu_indices(len(cosines), 1) if one == other else np.indices(same.shape)
            yield pair_of(one, other), cosines[tuple(chosen)].ravel(), same[tuple(chosen)].ravel()
