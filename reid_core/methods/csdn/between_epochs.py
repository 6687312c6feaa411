"""CSDN: supervised visible-infrared re-ID with modality prompts and text fusion.

Yu, Dong, Zhu, Peng, Tao: "CLIP-Driven Semantic Discovery Network for Visible-Infrared Identity
Re-Identification", IEEE TMM 2025. Told in the paper's order:

stage 1 "prompts"  four words per person and modality, against frozen image features
stage 2 "fusion"   Semantic Information Integration: a person's two texts become one
stage 3 "images"   the image side, with identities; High-level Semantic Embedding: the fused text
                   of a person is the target of its images in both modalities

Stages 1 and 2 are in `csdn_stages`, stage 3 in `csdn_images`, the settings, with the published
values as defaults, in `csdn_settings`. Nothing is clustered: identities are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from reid_core import sampling
from reid_core.knn.neighbours import Search
from reid_core.knn.search import nearest
from reid_core.method import Epoch, Stage
from reid_core.methods.csdn.images import Descriptor, Imaging, build_encoder
from reid_core.methods.csdn.settings import INPUTS, Config, Labels, is_guided, seed_of
from reid_core.methods.csdn.stages import Fusing, Prompting, anchors
from reid_core.models.clip import Clip
from reid_core.transforms import Augmentation
from reid_core.types import Modality


def supervision(config: Config) -> str:
    """What it is told about the training identities: who they are."""
    return "identities"


def needs_text(config: Config) -> bool:
    """Always: without guidance too, half of the descriptor lies in the space of the texts."""
    return True


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    if not is_guided(config):
        return ("images",)
    if config.anchors == "fusion":
        return ("prompts", "fusion", "images")
    return ("prompts", "images")


def batch_rows(config: Config) -> dict[str, int]:
    """Rows of a global batch per modality, under the keys that decide it."""
    found = {
        f"csdn.{name}.batch_size": getattr(config, name).batch_size for name in stages(config)[:-1]
    }
    rows = config.images.identities_per_batch * config.images.instances
    return {**found, "csdn.images.identities_per_batch x instances": rows}


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """Two views of a visible image, the second with exchanged channels, and one of an infrared.

    Reference: CSDN, stage 3, views. Colours are lost by channel operations, not by grayscale.
    """
    base = replace(base, grayscale=0.0)
    return {
        Modality.VISIBLE: (base, replace(base, channels="exchange")),
        Modality.INFRARED: (replace(base, channels="adapt"),),
    }


def begin_epoch(
    config: Config,
    stage: str,
    *,
    features: Mapping[Modality, np.ndarray],
    labels: Labels,
    owners: None = None,
    epoch: int,
    seed: int,
    search: Search = nearest,
    cameras: object = None,
) -> Epoch:
    """The plan of one epoch of stage 3: the same identities of both modalities in every batch.

    Args:
        config: the method's configuration.
        stage: "images".
        features: nothing; no epoch starts by embedding images.
        labels: per modality (n,) identities from 0, -1 unknown.
        owners: there are no captions.
        epoch: epoch number within the stage, from 0.
        seed: run seed; the plan depends on (seed, epoch) only.
        search, cameras: not asked for.

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
        seed=seed_of(seed, stage),
        epoch=epoch,
    )
    return Epoch(plan=dict(zip(INPUTS, plan, strict=True)), labels=dict(labels))


# What the machinery calls ------------------------------------------------------------------------


def open_stage(
    config: Config,
    name: str,
    clip: Clip,
    *,
    height: int,
    width: int,
    identities: Labels,
    handed: Mapping[str, Tensor],
    seed: int,
) -> Stage:
    """One stage, ready to train from fresh CLIP weights.

    Args:
        config: the method's configuration.
        name: "prompts", "fusion" or "images".
        clip: with a ModifiedResNet image tower.
        height, width: of the images, in pixels.
        identities: per modality (n,) identities from 0, the same numbers in both; -1 unknown.
        handed: what earlier stages handed on.
        seed: run seed.
    """
    encoder = build_encoder(config, clip, height=height, width=width)
    if name == "prompts":
        return Prompting(config, clip, encoder, identities=identities, seed=seed)
    if name == "fusion":
        return Fusing(config, encoder, identities=identities, handed=handed, seed=seed)
    guides = anchors(config, handed) if is_guided(config) else None
    return Imaging(config, encoder, identities=identities, guides=guides, seed=seed)


def load_encoder(
    config: Config, clip: Clip, *, height: int, width: int, state: Mapping[str, Tensor] | None
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


def check(config: Config) -> list[str]:
    """Warnings about settings that have no effect, or that do not go together."""
    idle = ["lambda2", "lambda3"] if config.anchors == "none" else []
    idle += [] if config.anchors == "fusion" else ["query", "dropout"]
    # a resumed run gives every key: only values that were changed are worth a word
    fields = type(config).model_fields
    names = [f"csdn.{name}" for name in idle if getattr(config, name) != fields[name].default]
    found = []
    if names:
        found.append(f"{', '.join(names)}: no effect with csdn.anchors={config.anchors}")
    if config.profile == "reference" and config.stem_relu == "all":
        found.append("csdn.stem_relu=all: the released weights were trained with the last alone")
    return found
