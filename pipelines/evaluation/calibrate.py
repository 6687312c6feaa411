"""Fitting what a cosine means: on validation identities, else on the last epoch's pseudo-labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.data.prepare import read
from pipelines.errors import UserError
from pipelines.evaluation.calibrated import PSEUDO, VALIDATION, Calibrated, save
from pipelines.evaluation.checkpoint import features_of
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.evaluation.pairs import Known, classes_of, pairs_of, sampled
from pipelines.runs import checkpoint
from reid_core.calibration import Calibration, expected_error, fit, reliability
from reid_core.types import OUTLIER, Dataset, Modality, Split


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
    known = {m: sampled(one, seed) for m, one in known.items()}
    features = _features(loaded, split, dataset.root, known)
    maps: dict[str, Calibration] = {}
    tables: dict[str, np.ndarray] = {}
    for name, cosines, same in pairs_of(known, features):
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


def _validation(dataset: Dataset, loaded: LoadedEncoder) -> dict[Modality, Known]:
    known = {m: classes_of(dataset.val, m) for m in loaded.modalities}
    return {m: one for m, one in known.items() if len(one.rows)}


def _pseudo(path: Path, dataset: Dataset, loaded: LoadedEncoder) -> dict[Modality, Known]:
    """Clusters of the last epoch; those of a matched pair are one class."""
    epoch = checkpoint.load(checkpoint.find(path)).get("epoch", {})
    known: dict[Modality, Known] = {}
    offsets: list[int] = []
    offset = 0
    for m in loaded.modalities:
        labels = epoch.get(f"labels.{m}")
        rows = dataset.train.rows(m)
        if labels is None or len(labels) != len(rows):
            continue
        classes = labels.numpy().astype(np.int64)
        remaining = classes != OUTLIER
        known[m] = Known(rows[remaining], classes[remaining] + offset)
        offsets.append(offset)
        offset += int(classes.max(initial=-1)) + 1
    if not known:
        raise UserError(
            f"{path} keeps no pseudo-labels of {dataset.root}, and there are no validation "
            "identities: calibrate with a data set that has some"
        )
    pairs = epoch.get("pairs")
    if pairs is not None and len(known) > 1:
        _join(known, pairs.numpy() + offsets[:2])
    return known


def _join(known: dict[Modality, Known], pairs: np.ndarray) -> None:
    """Give the second modality's clusters the classes (M, 2) that they are matched with."""
    second = list(known)[1]
    before = known[second].classes
    classes = before.copy()
    for one, other in pairs:
        classes[before == other] = one
    known[second] = Known(known[second].rows, classes)


def _features(
    loaded: LoadedEncoder, split: Split, root: Path, known: dict[Modality, Known]
) -> dict[Modality, np.ndarray]:
    rows = np.sort(np.concatenate([one.rows for one in known.values()]))
    result = features_of(loaded, split.take(rows), root)
    return {m: result[np.searchsorted(rows, one.rows)] for m, one in known.items()}
