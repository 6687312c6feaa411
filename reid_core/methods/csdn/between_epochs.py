"""CSDN: supervised visible-infrared re-ID with modality prompts and text fusion.

Yu, Dong, Zhu, Peng, Tao: "CLIP-Driven Semantic Discovery Network for Visible-Infrared Identity
Re-Identification", IEEE TMM 2025. Told in the paper's order:

stage 1 "prompts"  four words per person and modality, against frozen image features
stage 2 "fusion"   Semantic Information Integration: a person's two texts become one
stage 3 "images"   the image side, with identities; High-level Semantic Embedding: the fused text
                   of a person is the target of its images in both modalities

Stages 1 and 2 are in `stages`, stage 3 in `images`, the settings, with the published values as
defaults, in `settings`. Nothing is clustered: identities are given.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core import sampling
from reid_core.method import BetweenEpochs, EpochPlan, Labels, Opening
from reid_core.methods.csdn.images import Descriptor, Imaging, build_encoder
from reid_core.methods.csdn.settings import INPUTS, Config, is_guided, seed_of
from reid_core.methods.csdn.stages import Fusing, Prompting, anchors
from reid_core.models.backbones import Backbone
from reid_core.stage import Stage


def begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    """The plan of one epoch of stage 3: the same identities of both modalities in every batch.

    Args:
        config: the method's configuration.
        context: of stage "images"; the plan depends on seed and epoch only.
        labels: per modality (n,) identities from 0, -1 unknown.

    Raises:
        ValueError: no person was seen in both modalities.

    Reference: CSDN, stage 3, batches.
    """
    settings = config.images
    sides = [labels[m] for m in INPUTS]
    identities, instances = settings.identities_per_batch, settings.instances
    plan = sampling.paired_pk_plan(
        *sides,
        num_classes=identities,
        num_instances=instances,
        num_batches=settings.batches_per_epoch
        or sampling.num_batches(
            *(len(side) for side in sides), num_clusters=identities, num_instances=instances
        ),
        seed=seed_of(context.seed, context.stage),
        epoch=context.epoch,
    )
    return EpochPlan(rows=dict(zip(INPUTS, plan, strict=True)), labels=dict(labels))


# What the machinery calls ------------------------------------------------------------------------


def open_stage(config: Config, name: str, opening: Opening) -> Stage:
    """One stage, ready to train from fresh CLIP weights.

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
    config: Config, clip: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None
) -> Descriptor:
    """The encoder that stage 3 has trained, or CLIP's own where `state` is None.

    Raises:
        ValueError: the state is of another stage, or incomplete.
    """
    encoder = build_encoder(config, clip, height=height, width=width)
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
        raise ValueError(f"this state is not that of a whole image encoder: {error}") from error
    return Descriptor(encoder, flip=config.flip_test).eval()
