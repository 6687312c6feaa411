"""A small CCLNet run in pieces: labels, an epoch, a batch, one step as the machinery takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid_core import optim
from reid_core.method import BetweenEpochs, EpochPlan, Opening
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cclnet import opening
from reid_core.methods.cclnet.settings import Config
from reid_core.models import backbones
from reid_core.types import Batch, Modality

VISIBLE, INFRARED = INPUTS = (Modality.VISIBLE, Modality.INFRARED)
SIZE = {"height": 32, "width": 16}


def labels_of(num_clusters: int, *, seed: int) -> np.ndarray:
    """6 rows per cluster and 3 outliers, shuffled."""
    labels = np.concatenate([np.repeat(np.arange(num_clusters), 6), [-1] * 3])
    return np.random.default_rng(seed).permutation(labels)


def epoch_of(config: Config, stage: str, *, number: int = 0) -> EpochPlan:
    """An epoch of 3 visible and 4 infrared clusters with random features."""
    rng = np.random.default_rng(number)
    labels = {VISIBLE: labels_of(3, seed=1), INFRARED: labels_of(4, seed=2)}
    features = {m: rng.standard_normal((len(y), 384)).astype(np.float32) for m, y in labels.items()}
    features = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in features.items()}
    return cclnet.begin_epoch(config, BetweenEpochs(stage, number, 0, features=features), labels)


def batch_of(epoch: EpochPlan, *, number: int = 0) -> dict[Modality, Batch]:
    """The epoch's given global batch with random images."""
    generator = torch.Generator().manual_seed(number)
    result = {}
    for m in INPUTS:
        rows = epoch.rows[m][number]
        images = torch.randint(0, 256, (len(rows), 3, 32, 16), generator=generator)
        result[m] = Batch(
            images=images.to(torch.uint8),
            rows=torch.from_numpy(rows),
            labels=torch.from_numpy(epoch.labels[m][rows]),
        )
    return result


def small_config(**changes: Any) -> Config:
    stage = {"clusters_per_batch": 3, "instances": 4, "batches_per_epoch": 3}
    return Config.model_validate({"prepare": stage, "align": stage} | changes)


def handed(clip: backbones.Backbone) -> dict[str, Tensor]:
    """What stages 0 and 1 would hand on: 5 and 6 old clusters, outliers among the rows."""
    generator = torch.Generator().manual_seed(3)
    result = {}
    for m, classes, rows in ((VISIBLE, 5, 21), (INFRARED, 6, 27)):
        result[f"anchors.{m}"] = torch.randn(classes, clip.embed_dim, generator=generator)
        result[f"labels.{m}"] = torch.arange(rows) % (classes + 1) - 1
    return result


def opened(config: Config, stage: str, clip: backbones.Backbone) -> Any:
    return opening.open_stage(config, stage, Opening(clip, **SIZE, handed=handed(clip), seed=0))


def step(stage: Any, batch: dict[Modality, Batch], lr: float = 3.5e-4) -> Tensor:
    """One whole training step, as the machinery takes it with one worker."""
    optimizer = stage.optimizer()
    optim.set_lr(optimizer, lr)
    terms = stage.terms(stage.module, batch, lambda x: x)
    total = sum(term.weight * term.mean for term in terms.values())
    total.backward()
    optimizer.step()
    stage.update(lambda x: x)
    return total.detach()
