"""CPCL: text-image retrieval from pairs, without identities.

Imports no torch; what needs it is imported where it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from reid_core.method import BetweenEpochs, Demo, EpochPlan, Labels, Method, Opening
from reid_core.methods.cpcl import settings
from reid_core.methods.cpcl.settings import INPUTS, Config
from reid_core.methods.cpcl.words import WORDS
from reid_core.types import Modality

if TYPE_CHECKING:
    from torch import Tensor

    from reid_core.models.backbones import Backbone
    from reid_core.stage import Encoder, Stage


def _cluster(config: Config, modality: Modality, context: BetweenEpochs) -> np.ndarray:
    from reid_core.methods.cpcl.between_epochs import cluster

    return cluster(config, modality, context)


def _begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    from reid_core.methods.cpcl.between_epochs import begin_epoch

    return begin_epoch(config, context, labels)


def _open_stage(config: Config, name: str, opening: Opening) -> Stage:
    from reid_core.methods.cpcl.opening import open_stage

    return open_stage(config, name, opening)


def _load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> Encoder:
    from reid_core.methods.cpcl.opening import load_encoder

    return load_encoder(config, backbone, height, width, state)


METHOD = Method(
    name="cpcl",
    title="CPCL",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="cpcl_demo.yaml",
        fast=("cpcl.train.epochs=2", "cpcl.train.warmup_epochs=0"),
        identities=300,
        test_share=0.3,
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    cluster=_cluster,
    begin_epoch=_begin_epoch,
    open_stage=_open_stage,
    load_encoder=_load_encoder,
)
