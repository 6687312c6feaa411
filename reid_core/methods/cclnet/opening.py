"""What the machinery opens of CCLNet: its stages, and the encoder that one has trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.method import Opening
from reid_core.methods.cclnet.prompting import Prompting
from reid_core.methods.cclnet.settings import Config
from reid_core.methods.cclnet.stages import Images
from reid_core.methods.mirror_mean import MirrorMean, open_encoder
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.stage import CachedStage, StreamedStage


def open_stage(config: Config, name: str, opening: Opening) -> StreamedStage | CachedStage:
    """One stage, ready to train from the first weights."""
    backbone = opening.backbone
    encoder = ImageEncoder(backbone, height=opening.height, width=opening.width)
    if name == "prompts":
        return Prompting(config, backbone, encoder, handed=opening.handed, seed=opening.seed)
    return Images(config, name, encoder, handed=opening.handed)


def load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> ImageEncoder | MirrorMean:
    """The encoder that stage 0 or 2 has trained, or an untrained one where `state` is None."""
    return open_encoder(backbone, height, width, state, flip=config.flip)
