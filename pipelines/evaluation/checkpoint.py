"""Scores of a saved encoder: its checkpoint, a data set, every protocol, in this process."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.cluster import machine
from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.data import extract_features
from pipelines.data.measurable import why_unmeasured
from pipelines.data.prepare import (
    inputs_of,
    read,
    refuse_too_many,
    resized_otherwise,
    without_broken,
)
from pipelines.data.sample_list import rows_of, rows_of_checkpoint
from pipelines.data.unreadable import find_in_threads
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.pairs import errors
from pipelines.storage.shards import location
from reid_core.datasets import LAYOUTS
from reid_core.tracklets import pooled
from reid_core.types import Modality, Split

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    path: Path,
    *,
    kind: str | None = None,
    root: Path | None = None,
    trial: int | None = None,
    split: str = "test",
    flip: bool = False,
    reranked: bool = False,
    tracklets: bool = False,
) -> Evaluation:
    """Measure a saved encoder in this process, on a GPU if there is one.

    Args:
        path: checkpoint folder or run directory.
        kind, root, trial: of the data set, as in `pipelines.config.DataConfig`; None for those
            that the run was trained with.
        split: "test" or "val".
        flip, reranked: also score with mirrored images, or re-ranked; see `evaluate`.
        tracklets: rank tracklets, each by the mean of its images' vectors, instead of images.

    Raises:
        UserError: no such checkpoint, data set, kind or split, or no tracklet in it; images that
            were trained on; more images that cannot be read than `data.max_unreadable` allows.
    """
    if split not in ("test", "val"):
        raise UserError(f"--split {split}: choose test or val")
    loaded = open_encoder(path)
    config = _of_data(loaded.config, path, kind, root, trial)
    dataset = read(config)
    samples: Split = getattr(dataset, split)
    if reason := why_unmeasured(dataset.kind, samples, loaded.modalities):
        raise UserError(f"{location(dataset.root)}: of the {split} split {reason}")
    _refuse_trained(path, samples, loaded.config, config)
    for said in resized_otherwise(dataset, config):
        log.warning("%s", said)
    try:
        results = features_of(loaded, samples, dataset.root, config=config, flip=flip)
    except ValueError:  # as in training, images that cannot be read are left out
        samples = _readable(samples, dataset.root, config)
        results = features_of(loaded, samples, dataset.root, config=config, flip=flip)
    width = loaded.encoder.feature_dim
    features = np.ascontiguousarray(results[:, :width])
    mirrored = np.ascontiguousarray(results[:, width:]) if flip else None
    if tracklets:
        samples, features, mirrored = _per_tracklet(samples, features, mirrored)
    result = evaluate(dataset.kind, samples, features, mirrored=mirrored, reranked=reranked)
    known = calibrated.load(path, fingerprint=loaded.fingerprint)
    return replace(result, calibration=errors(known, samples, features)) if known else result


def _of_data(
    config: RunConfig, path: Path, kind: str | None, root: Path | None, trial: int | None
) -> RunConfig:
    """The run's configuration with the data set that is measured."""
    tree = config.model_dump(mode="json")
    given = {"kind": kind, "root": root, "trial": trial}
    tree["data"] |= {key: value for key, value in given.items() if value is not None}
    config = configuration.validate(tree, source=str(path))
    if trial is not None and not LAYOUTS[config.data.kind].has_trials:
        raise UserError(f"--trial {trial}: {config.data.kind} has no divisions, RegDB has")
    return config


def _refuse_trained(path: Path, split: Split, trained: RunConfig, config: RunConfig) -> None:
    """Scores of images that were trained on say nothing about identities never seen.

    Another data set may have images of the same names: there it is said.
    """
    shared = sorted(set(rows_of_checkpoint(path)) & set(rows_of(split)))
    if not shared or config.data.allow_shared_identities:
        return
    said = f"{len(shared):,} of {len(split):,} measured rows, as {shared[0][1]}"
    if (trained.data.root, trained.data.kind) != (config.data.root, config.data.kind):
        log.warning(
            "%s, are called as rows that this run was trained on: where they are the same images, "
            "these scores say nothing about identities never seen",
            said,
        )
        return
    raise UserError(
        f"{said}, are rows that this run was trained on: scores of them say nothing about "
        "identities never seen. Measure another split or, of RegDB, the run's own trial; "
        "data.fit=train leaves the validation split to be measured"
    )


def _readable(split: Split, root: Path, config: RunConfig) -> Split:
    find = partial(find_in_threads, num_threads=machine.cores())
    rest, messages = without_broken(split, root, config, find)
    refuse_too_many(messages, len(split), config)
    for message in messages:
        log.warning("left out: %s", message)
    return rest


def features_of(
    loaded: LoadedEncoder,
    split: Split,
    root: Path,
    *,
    config: RunConfig | None = None,
    flip: bool = False,
) -> np.ndarray:
    """Descriptors (N, D) float32 of the rows of a split.

    Args:
        loaded: the encoder.
        split: rows of modalities that it embeds.
        root: folder that their images are relative to.
        config: of the data, None for that of the run.
        flip: with those of the mirrored images behind, (N, 2 D).
    """
    config = config or loaded.config
    inputs = inputs_of(split, root, config)
    shape = (len(split), loaded.encoder.feature_dim * (1 + flip))
    features = np.full(shape, np.nan, dtype=np.float32)  # of what it does not embed
    for m in loaded.modalities:
        if len(split.rows(m)):
            features[split.rows(m)] = (
                extract_features.embed(
                    _with_mirrored(loaded.encoder.embed) if flip else loaded.encoder.embed,
                    inputs,
                    m,
                    np.arange(inputs.num_rows(m)),
                    batch_size=config.trainer.embed_batch,
                    device=loaded.device,
                    precision=config.trainer.precision,
                    readers=machine.cores() if loaded.device.type == "cuda" else 1,
                )
                .cpu()
                .numpy()
            )
    return features


def _per_tracklet(
    split: Split, features: np.ndarray, mirrored: np.ndarray | None
) -> tuple[Split, np.ndarray, np.ndarray | None]:
    if not (split.tracklets >= 0).any():
        raise UserError(
            "no image of this split has a tracklet: a manifest's column tracklet says which track "
            "an image was cut from"
        )
    try:
        tracks, rows = pooled(split, features)
        return tracks, rows, None if mirrored is None else pooled(split, mirrored)[1]
    except ValueError as error:
        raise UserError(str(error)) from error


def _with_mirrored(embed: extract_features.Head) -> extract_features.Head:
    """A head that returns the descriptors of images and of their mirror images side by side."""

    def both(inputs: Tensor, modality: Modality) -> Tensor:
        plain = embed(inputs, modality)
        other = plain if modality == Modality.TEXT else embed(inputs.flip(3), modality)
        return torch.cat([plain, other], dim=1)

    return both
