"""What the machinery opens of CPCL: its stages, and the encoder that one has trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.method import Opening
from reid_core.methods.cpcl.settings import Config
from reid_core.methods.cpcl.stages import Train
from reid_core.models.backbones import Backbone
from reid_core.models.text_image import TextImageEncoder
from reid_core.stage import StreamedStage


def open_stage(config: Config, name: str, opening: Opening) -> StreamedStage:
    """The stage, ready to train from the first weights, all of which learn.

    Given identities reach it as the labels of its epochs.
    """
    encoder = TextImageEncoder(opening.backbone, height=opening.height, width=opening.width)
    return Train(config, encoder, seed=opening.seed)


def load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> TextImageEncoder:
    """The encoder of a module state of the stage, or an untrained one where `state` is None."""
    encoder = TextImageEncoder(backbone, height=height, width=width)
    if state is not None:
        encoder.load_state_dict(dict(state))
    return encoder.eval()
