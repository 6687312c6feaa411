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
    """One stage, ready to train from fresh CLIP weights."""
    clip = opening.backbone
    encoder = ImageEncoder(clip, height=opening.height, width=opening.width)
    if name == "prompts":
        return Prompting(config, clip, encoder, handed=opening.handed, seed=opening.seed)
    return Images(config, name, encoder, handed=opening.handed)


def load_encoder(
    config: Config, clip: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> ImageEncoder | MirrorMean:
    """The encoder that stage 0 or 2 has trained, or CLIP's own where `state` is None."""
    return open_encoder(clip, height, width, state, flip=config.flip)
