"""A small BMIL run in pieces: settings, a world of features, an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from reid_core.method import BetweenEpochs, EpochPlan
from reid_core.methods.bmil import between_epochs as bmil
from reid_core.methods.bmil.settings import Config
from reid_core.types import Modality

V, R = INPUTS = (Modality.VISIBLE, Modality.INFRARED)
SIZE = {"height": 32, "width": 16}


def config_of(**changes: Any) -> Config:
    stage = {"clusters_per_batch": 3, "instances": 4, "batches_per_epoch": 3}
    small = {"clustering": {"k1": 8, "k2": 2, "min_samples": 3, "subset": 1}}
    return Config.model_validate({"intra": stage, "joint": stage} | small | changes)


def world(gap: float = 1.0, num: int = 10, each: int = 8, width: int = 384):
    """Identities of both modalities with a shift between them; the last two are infrared only."""
    rng = np.random.default_rng(0)
    centers, shift = rng.normal(size=(num, width)), rng.normal(size=width)
    features, truth = {}, {}
    for m, amount, identities in ((V, 0.0, num - 2), (R, gap, num)):
        truth[m] = np.repeat(np.arange(identities), each)
        x = centers[truth[m]] + amount * shift + 0.4 * rng.normal(size=(len(truth[m]), width))
        features[m] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return features, truth


def epoch_of(config: Config, stage: str = "joint") -> EpochPlan:
    features, _ = world()
    return bmil.begin_epoch(config, BetweenEpochs(stage, 0, 0, features=features), {})
