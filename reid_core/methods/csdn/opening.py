"""What the machinery opens of CSDN: its stages, and the encoder that one has trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.method import Opening
from reid_core.methods.csdn.images import Descriptor, Imaging, build_encoder
from reid_core.methods.csdn.settings import Config, is_guided
from reid_core.methods.csdn.stages import Fusing, Prompting, anchors
from reid_core.models.backbones import Backbone
from reid_core.stage import CachedStage, StreamedStage


def open_stage(config: Config, name: str, opening: Opening) -> StreamedStage | CachedStage:
    """One stage, ready to train from the first weights.

    Args:
        config: the method's configuration.
        name: "prompts", "fusion" or "images".
        opening: with identities from 0, the same numbers in both modalities; -1 unknown.
    """
    identities, seed = opening.identities, opening.seed
    assert identities is not None  # see `supervision`
    encoder = build_encoder(config, opening.backbone, height=opening.height, width=opening.width)
    if name == "prompts":
        return Prompting(config, opening.backbone, encoder, identities=identities, seed=seed)
    if name == "fusion":
        return Fusing(config, encoder, identities=identities, handed=opening.handed, seed=seed)
    guides = anchors(config, opening.handed) if is_guided(config) else None
    return Imaging(config, encoder, identities=identities, guides=guides, seed=seed)


def load_encoder(
    config: Config, backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> Descriptor:
    """The encoder that stage 3 has trained, or an untrained one where `state` is None.

    Raises:
        ValueError: the state is of another stage, or incomplete.
    """
    encoder = build_encoder(config, backbone, height=height, width=width)
    if state is None:
        return Descriptor(encoder, flip=config.flip_test).eval()
    prefix = "encoder."
    weights = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    if not weights:
        raise ValueError(
            'this state holds no image encoder: stages "prompts" and "fusion" train texts alone; '
            'take a checkpoint of stage "images"'
        )
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        odd = sorted(weights.keys() ^ encoder.state_dict().keys())
        raise ValueError(
            "this state is not that of a whole image encoder: it is damaged, or of another model"
            + (f"; missing or unknown: {', '.join(odd[:5])} ({len(odd)} names)" if odd else "")
        ) from error
    return Descriptor(encoder, flip=config.flip_test).eval()
