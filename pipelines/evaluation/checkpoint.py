"""Scores of a saved encoder: its checkpoint, a data set, every protocol, in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.cluster import machine
from pipelines.config.run import RunConfig
from pipelines.data import extract_features
from pipelines.data.prepare import inputs_of
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.measured_data import chosen, readable
from pipelines.evaluation.pairs import errors
from reid_core.tracklets import pooled
from reid_core.types import Modality, Split


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
    loaded = open_encoder(path)
    data = chosen(loaded, path, split, kind=kind, root=root, trial=trial)
    samples, config = data.samples, data.config
    try:
        results = features_of(loaded, samples, data.root, config=config, flip=flip)
    except ValueError:  # as in training, images that cannot be read are left out
        samples = readable(data)
        results = features_of(loaded, samples, data.root, config=config, flip=flip)
    width = loaded.encoder.feature_dim
    features = np.ascontiguousarray(results[:, :width])
    mirrored = np.ascontiguousarray(results[:, width:]) if flip else None
    if tracklets:
        samples, features, mirrored = _per_tracklet(samples, features, mirrored)
    result = evaluate(data.kind, samples, features, mirrored=mirrored, reranked=reranked)
    known = calibrated.load(path, fingerprint=loaded.fingerprint)
    return replace(result, calibration=errors(known, samples, features)) if known else result


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
