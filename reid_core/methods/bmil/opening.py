"""What the machinery opens of BMIL: its stages, and the encoder that one has trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.method import Opening
from reid_core.methods.bmil.settings import Config
from reid_core.methods.bmil.stages import Images, encoder_of
from reid_core.methods.mirror_mean import MirrorMean, open_encoder
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.stage import StreamedStage


def open_stage(config: Config, name: str, opening: Opening) -> StreamedStage:
    """One stage: "intra" from the first weights, "joint" from what "intra" hands on."""
    encoder = ImageEncoder(opening.backbone, height=opening.height, width=opening.width)
    weights = encoder_of(opening.handed)
    if name == "joint" and weights:
        encoder.load_state_dict(weights)
    return Images(config, name, encoder)


def load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> ImageEncoder | MirrorMean:
    """The encoder that a stage has trained, or an untrained one where `state` is None."""
    return open_encoder(backbone, height, width, state, flip=config.flip)
