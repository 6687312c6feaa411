"""CCLNet: unsupervised visible-infrared re-ID with CLIP prompts and memory swapping.

Chen, Zhang, Tan, Qu, Xie: "Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person
Re-Identification", ACM MM 2023. Told in the paper's order:

stage 0 "prepare"  cluster each modality, contrast images with their cluster prototypes; later in
                   the stage, swap matched prototypes between the modalities
stage 1 "prompts"  learn four prompt tokens per stage-0 cluster against frozen image features
stage 2 "align"    as stage 0 again, and text guides images

That stage 0 swaps too is the authors' script of it. Stages 1 and 2 start from the first weights;
only stage 0's last labels are handed on. Here is what happens between epochs, where all features
are known; `stages` holds what a worker does within them, `settings` what can be told, with the
published values as defaults.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from reid_core import clustering, mining, sampling
from reid_core.knn.products import Features
from reid_core.method import BetweenEpochs, EpochPlan, Labels
from reid_core.methods import mutual_agreement
from reid_core.methods.camera_rows import rows_to_compare
from reid_core.methods.cclnet.across import cross_votes, of_contradictions
from reid_core.methods.cclnet.association import guarded, pairs_of_epoch, whitened
from reid_core.methods.cclnet.coupling import (
    couple,
    couples_between_epochs,
    identities_of_both,
    to_compare,
)
from reid_core.methods.cclnet.settings import (
    INPUTS,
    Config,
    ImageStage,
    seed_of,
)
from reid_core.methods.refinement import refined
from reid_core.types import OUTLIER, Modality

# Stages 0 and 2, between epochs ------------------------------------------------------------------


def cluster(config: Config, modality: Modality, context: BetweenEpochs) -> np.ndarray:
    """Pseudo labels (n,) int64 of one modality's rows; -1 = outlier."""
    settings = config.clustering
    return clustering.cluster(
        rows_to_compare(settings.camera_scaling, context, modality),
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.eps,
        min_samples=settings.min_samples,
        search=context.nearest,
    )


def begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    """Prototypes, pairs, swap and plan of one epoch; a pure function of its arguments.

    Args:
        config: the method's configuration.
        context: of stage "prepare" or "align"; the features decide prototypes, the search is for
            joint clusters and for neighbors that vote.
        labels: per modality (n,) from `cluster`, or given classes, of which those that occur in
            one modality only become -1.

    Raises:
        ValueError: a modality has no cluster, or given identities no identity of both; names what
            to change.
    """
    settings: ImageStage = getattr(config, context.stage)
    warnings: tuple[str, ...] = ()
    if config.labels == "identities":
        labels, warnings = identities_of_both(labels)
    elif config.labels == "within":
        labels = {m: mining.contiguous(labels[m]) for m in INPUTS}
    _check_clusters(config, labels)
    prototypes = {m: clustering.unit_centroids(context.features[m], labels[m]) for m in INPUTS}
    features, matched, of_match = _to_match(config, context, labels, prototypes)
    pairs, contradictory = pairs_of_epoch(config, context, matched, features, labels)
    counts, weak = mutual_agreement.agreement(*(matched[m] for m in INPUTS), epoch=context.epoch)
    pairs, dropped = guarded(config, matched, pairs, share=counts[mutual_agreement.COUNT])
    if config.labels != "identities":
        warnings = warnings + weak + dropped
    arrays, numbers = _votes(config, context, features, labels, pairs)
    if config.matching.exclusion and len(contradictory):
        arrays |= of_contradictions(contradictory)
    similarity = (
        (prototypes[Modality.VISIBLE][pairs[:, 0]] * prototypes[Modality.INFRARED][pairs[:, 1]])
        .sum(dim=1)
        .numpy()
    )
    if couples_between_epochs(config):
        prototypes = couple(config, prototypes, pairs)
    return EpochPlan(
        rows=_plan(settings, labels, context),
        labels=dict(labels),
        prototypes={m: x.numpy() for m, x in prototypes.items()},
        pairs=pairs,
        similarity=similarity,
        arrays=arrays,
        counts=counts | of_match | numbers,
        warnings=warnings + _warnings(settings, prototypes),
    )


def _to_match(
    config: Config, context: BetweenEpochs, labels: Labels, prototypes: Mapping[Modality, Tensor]
) -> tuple[dict[Modality, Features], Mapping[Modality, Tensor], dict[str, float]]:
    """The features and prototypes that matches are made of: without what cameras add, centered and
    whitened, if asked; and what is to be logged of it.
    """
    scaling = config.matching.camera_scaling
    scaling = config.clustering.camera_scaling if scaling is None else scaling
    features = {m: rows_to_compare(scaling, context, m) for m in INPUTS}
    if scaling is not None:
        prototypes = {m: clustering.unit_centroids(features[m], labels[m]) for m in INPUTS}
    prototypes = to_compare(config, prototypes)
    return features, *whitened(config, features, labels, prototypes, epoch=context.epoch)


def _votes(
    config: Config,
    context: BetweenEpochs,
    features: Mapping[Modality, Features],
    labels: Labels,
    pairs: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What neighbors of either modality say of the labels, where they are asked."""
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for m in INPUTS if config.refine.on else ():
        rows = rows_to_compare(config.clustering.camera_scaling, context, m)
        of_side, numbers = refined(config.refine, m, rows, labels[m], search=context.nearest)
        arrays, counts = arrays | of_side, counts | numbers
    if config.refine.cross and len(pairs):
        of_others, numbers = cross_votes(config, features, labels, pairs, search=context.nearest)
        arrays, counts = arrays | of_others, counts | numbers
    return arrays, counts


def _check_clusters(config: Config, labels: Labels) -> None:
    settings = config.clustering
    for m in INPUTS:
        if labels[m].max(initial=OUTLIER) == OUTLIER:
            raise ValueError(
                f"no cluster in the {m} modality ({len(labels[m])} images, eps={settings.eps}, "
                f"k1={settings.k1}, min_samples={settings.min_samples}): "
                "raise cclnet.clustering.eps or lower min_samples there, with k1 at most the "
                "images of one identity; docs/troubleshooting.md"
            )


def _warnings(settings: ImageStage, prototypes: Mapping[Modality, Tensor]) -> tuple[str, ...]:
    wanted = settings.clusters_per_batch
    return tuple(
        f"only {len(prototypes[m])} {m} clusters for clusters_per_batch={wanted}: every batch "
        "repeats them"
        for m in INPUTS
        if len(prototypes[m]) < wanted
    )


def _plan(
    settings: ImageStage, labels: Labels, context: BetweenEpochs
) -> dict[Modality, np.ndarray]:
    num_clusters, num_instances = settings.clusters_per_batch, settings.instances
    remaining = [int((labels[m] != OUTLIER).sum()) for m in INPUTS]
    num_batches = settings.batches_per_epoch or sampling.num_batches(
        remaining[0], remaining[1], num_clusters=num_clusters, num_instances=num_instances
    )
    return {
        m: sampling.pk_plan(
            labels[m],
            num_clusters=num_clusters,
            num_instances=num_instances,
            num_batches=num_batches,
            seed=seed_of(context.seed, context.stage, m),
            epoch=context.epoch,
        )
        for m in INPUTS
    }
