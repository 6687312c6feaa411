"""CSDN: supervised visible-infrared re-identification with texts.

Imports no torch; what needs it is imported where it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from reid_core.method import BetweenEpochs, Demo, EpochPlan, Labels, Method, Opening
from reid_core.methods.csdn import settings
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.methods.csdn.words import WORDS

if TYPE_CHECKING:
    from torch import Tensor

    from reid_core.models.backbones import Backbone
    from reid_core.stage import Encoder, Stage


def _begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    from reid_core.methods.csdn.between_epochs import begin_epoch

    return begin_epoch(config, context, labels)


def _open_stage(config: Config, name: str, opening: Opening) -> Stage:
    from reid_core.methods.csdn.opening import open_stage

    return open_stage(config, name, opening)


def _load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> Encoder:
    from reid_core.methods.csdn.opening import load_encoder

    return load_encoder(config, backbone, height, width, state)


METHOD = Method(
    name="csdn",
    title="CSDN",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="csdn_demo.yaml",
        fast=(
            "csdn.prompts.epochs=2",
            "csdn.fusion.epochs=2",
            "csdn.images.epochs=2",
            "csdn.images.batches_per_epoch=4",
        ),
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    begin_epoch=_begin_epoch,
    open_stage=_open_stage,
    load_encoder=_load_encoder,
    reads_features=False,
)
