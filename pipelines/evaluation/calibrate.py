"""Fitting what a cosine means: on validation identities, else on the last epoch's pseudo-labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.listed import fit_rows, read
from pipelines.data.prepare import inputs_of
from pipelines.data.sample_list import recall, restore
from pipelines.data.unreadable import find_in_threads
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrated import PSEUDO, TRAINED, VALIDATION, Calibrated, pair_of
from pipelines.evaluation.checkpoint import features_of
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.evaluation.pairs import Known, classes_of, pairs_of, sampled, shares_of, weights_at
from pipelines.runs import checkpoint
from pipelines.storage.files import reason
from reid_core.calibration import Calibration, expected_error, fit, reliability
from reid_core.types import OUTLIER, Dataset, Modality, Split

log = logging.getLogger(__name__)


def calibrate(
    path: Path, *, labels: str = "auto", seed: int = 0, device: torch.device | None = None
) -> Calibrated:
    """Fit and keep P(same identity | cosine) per pair of modalities.

    Images that cannot be read are left out, and so is every pair of modalities without equal and
    different pairs, each with a warning.

    Args:
        path: checkpoint folder or run directory.
        labels: "val", "pseudo", or "auto": validation identities where there are some.
        seed: of the sample, where there are more rows than needed.
        device: to embed on, None for a GPU if there is one.

    Raises:
        UserError: neither validation identities nor pseudo-labels, or the data are not there.
    """
    if labels not in ("auto", "val", "pseudo"):
        raise UserError(f"--labels {labels}: choose auto, val or pseudo")
    path = checkpoint.find(path)  # once for all: a run that trains on has others later
    loaded = open_encoder(path, device=device)
    dataset = read(loaded.config)
    source, split, known = _labeled(path, dataset, loaded, labels)
    shares, known = shares_of(known), sampled(known, seed)
    known, features = _embedded(loaded, split, dataset.root, known)
    maps: dict[str, Calibration] = {}
    tables: dict[str, np.ndarray] = {}
    left_out = _of_unknown(loaded.modalities, known)
    for name, cosines, same in pairs_of(known, features):
        try:
            maps[name] = replace(fit(cosines, same), prior=shares[name])
        except ValueError as error:  # no equal or no different pair of these modalities
            left_out[name] = str(error)
            continue
        tables[name] = reliability(
            maps[name](cosines), same, weights=weights_at(shares[name], same)
        )
    for name, why in left_out.items():
        log.warning("no probabilities between %s: %s", name.replace(" ", " and "), why)
    if not maps:
        raise UserError(
            f"{source}: no two modalities have pairs of one identity and pairs of two, so that "
            "nothing can be calibrated"
        )
    result = Calibrated(
        fingerprint=loaded.fingerprint,
        source=source,
        maps=maps,
        error={name: expected_error(one) for name, one in tables.items()},
        reliability={name: one[one[:, 0] > 0].tolist() for name, one in tables.items()},
    )
    calibrated.save(path, result)
    return result


def calibrate_finished(run_dir: Path, device: torch.device | None = None) -> str:
    """At the end of a run: `calibrate`, where nobody has yet.

    Returns:
        What is in the way, whatever it is: a trained run does not fail for it. "" for nothing.
    """
    try:
        if calibrated.load(run_dir) is None:
            calibrate(run_dir, device=device)
    except Exception as error:  # of a GPU without memory, of a disk, of a library
        return in_words(error)
    return ""


def in_words(error: Exception) -> str:
    """What is in the way of a calibration, in one line where it was not meant for users."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(reason(error).splitlines()), '')}"


def _labeled(
    path: Path, dataset: Dataset, loaded: LoadedEncoder, labels: str
) -> tuple[str, Split, dict[Modality, Known]]:
    """Which identities are known, the split that they are in, and its rows."""
    if labels != "pseudo":
        known = {m: classes_of(dataset.val, m) for m in loaded.modalities}
        known = {m: one for m, one in known.items() if len(np.unique(one.classes)) > 1}
        if known:
            apart = loaded.config.data.fit == "train"
            return VALIDATION if apart else TRAINED, dataset.val, known
    if labels == "val":
        raise UserError(f"{dataset.root} has no two validation identities: --labels pseudo")
    split = _trained_rows(path, dataset, loaded)
    return PSEUDO, split, _pseudo(path, split, loaded)


def _trained_rows(path: Path, dataset: Dataset, loaded: LoadedEncoder) -> Split:
    """The rows that the labels of the last epoch count."""
    split = fit_rows(dataset, loaded.config)
    begun = recall(checkpoint.find(path).parent)
    return split if begun is None else restore(split, begun)


def _of_unknown(modalities: Sequence[Modality], known: Mapping[Modality, Known]) -> dict[str, str]:
    """Pairs of modalities, one of which no class is known of, and why they are left out."""
    return {
        pair_of(one, other): f"nothing says who is who of {one if one not in known else other}"
        for one, other in combinations_with_replacement(modalities, 2)
        if not known.keys() >= {one, other}
    }


def _pseudo(path: Path, split: Split, loaded: LoadedEncoder) -> dict[Modality, Known]:
    """Clusters of the last epoch, see `_classes`."""
    epoch = checkpoint.load(checkpoint.find(path)).get("epoch", {})
    known = _classes(epoch, split, loaded.modalities)
    if not known:
        raise UserError(
            f"{path} keeps no pseudo-labels of {loaded.config.data.root}, and it has no two "
            "validation identities: calibrate with a data set that has some"
        )
    return known


def _classes(
    epoch: Mapping[str, Tensor], split: Split, modalities: Sequence[Modality]
) -> dict[Modality, Known]:
    """Clusters of an epoch as classes; those that are paired are one class.

    Args:
        epoch: `Stage.state_dict`.
        split: whose rows the labels count.
        modalities: those of the first two are paired.
    """
    known: dict[Modality, Known] = {}
    offsets: list[int] = []
    offset = 0
    for m in modalities:
        labels = epoch.get(f"labels.{m}")
        rows = split.rows(m)
        if labels is None or len(labels) != len(rows):
            continue
        classes = labels.numpy().astype(np.int64)
        remaining = classes != OUTLIER
        known[m] = Known(rows[remaining], classes[remaining] + offset)
        offsets.append(offset)
        offset += int(classes.max(initial=-1)) + 1
    pairs = epoch.get("pairs")
    if pairs is not None and len(known) > 1:
        _join(known, pairs.numpy() + offsets[:2])
    return known


def _join(known: dict[Modality, Known], pairs: np.ndarray) -> None:
    """Give the second modality's clusters the classes of the first that they are paired with.

    Args:
        known: of both, in classes that differ.
        pairs: (M, 2) classes; equal rows count, so that of several partners the most frequent one
            is taken, and of equally frequent ones the first.
    """
    second = list(known)[1]
    classes, place = np.unique(known[second].classes, return_inverse=True)
    together, counts = np.unique(pairs, axis=0, return_counts=True)
    together = together[np.lexsort((-together[:, 0], counts))]  # the last one of a cluster stays
    matched = np.isin(together[:, 1], classes)
    classes[np.searchsorted(classes, together[matched, 1])] = together[matched, 0]
    known[second] = Known(known[second].rows, classes[place])


def _embedded(
    loaded: LoadedEncoder, split: Split, root: Path, known: dict[Modality, Known]
) -> tuple[dict[Modality, Known], dict[Modality, np.ndarray]]:
    """What is known of rows that can be read, and their vectors."""
    rows = _with_images(split, np.concatenate([one.rows for one in known.values()]))
    rows = _readable(loaded, split, root, rows)
    known = {m: _within(one, rows) for m, one in known.items()}
    result = features_of(loaded, split.take(rows), root)
    return known, {m: result[np.searchsorted(rows, one.rows)] for m, one in known.items()}


def _with_images(split: Split, rows: np.ndarray) -> np.ndarray:
    """Some rows, and those of the images that captions among them describe; rising."""
    described = {
        split.samples[row].image for row in np.intersect1d(rows, split.rows(Modality.TEXT))
    }
    images = [i for i in split.rows(Modality.VISIBLE) if split.samples[i].image in described]
    return np.union1d(rows, np.array(images, dtype=rows.dtype))


def _readable(loaded: LoadedEncoder, split: Split, root: Path, rows: np.ndarray) -> np.ndarray:
    """Without the rows of images that cannot be read, and of their captions."""
    inputs = inputs_of(split.take(rows), root, loaded.config)
    broken = {
        str(paths[row]): message
        for m, paths in inputs.paths.items()
        for row, message in find_in_threads(inputs, m, num_threads=torch.get_num_threads())
    }
    if broken:
        message = next(iter(broken.values()))
        log.warning("left out: %d images that cannot be read, as %s", len(broken), message)
    return np.array([i for i in rows if split.samples[i].image not in broken], dtype=rows.dtype)


def _within(known: Known, rows: np.ndarray) -> Known:
    remaining = np.isin(known.rows, rows)
    return Known(known.rows[remaining], known.classes[remaining])
