"""CSDN: supervised visible-infrared re-ID with modality prompts and text fusion.

Yu, Dong, Zhu, Peng, Tao: "CLIP-Driven Semantic Discovery Network for Visible-Infrared Person
Re-Identification", IEEE TMM 2025. Told in the paper's order:

stage 1 "prompts"  four words per identity and modality, against frozen image features
stage 2 "fusion"   Semantic Information Integration: an identity's two texts become one
stage 3 "images"   the image side, with identities; High-level Semantic Embedding: the fused text
                   of an identity is the target of its images in both modalities

Stages 1 and 2 are in `stages`, stage 3 in `images`, the settings, with the published values as
defaults, in `settings`. Nothing is clustered: identities are given.
"""

from __future__ import annotations

from reid_core import sampling
from reid_core.method import BetweenEpochs, EpochPlan, Labels
from reid_core.methods.csdn.settings import INPUTS, Config, seed_of


def begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    """The plan of one epoch of stage 3: the same identities of both modalities in every batch.

    Args:
        config: the method's configuration.
        context: of stage "images"; the plan depends on seed and epoch only.
        labels: per modality (n,) identities from 0, -1 unknown.

    Raises:
        ValueError: no identity was seen in both modalities.

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
