"""CCLNet: unsupervised visible-infrared re-ID with CLIP prompts and memory swapping.

Chen, Zhang, Tan, Qu, Xie: "Unveiling the Power of CLIP in Unsupervised Visible-Infrared Identity
Re-Identification", ACM MM 2023. Told in the paper's order:

stage 0 "prepare"  cluster each modality, contrast images with their cluster prototypes; later in
                   the stage, swap matched prototypes between the modalities
stage 1 "prompts"  learn four prompt tokens per stage-0 cluster against frozen image features
stage 2 "align"    as stage 0 again, and text guides images

That stage 0 swaps too is the authors' script of it. Stages 1 and 2 start from fresh CLIP weights;
only stage 0's last labels are handed on. Here is what happens between epochs, where all features
are known; `cclnet_stages` holds what a worker does within them, `cclnet_settings` the settings,
with the published values as defaults.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reid_core import clustering, sampling
from reid_core.knn.neighbours import Search
from reid_core.knn.search import nearest
from reid_core.method import Epoch, Stage
from reid_core.methods import views
from reid_core.methods.cclnet.association import named_pairs
from reid_core.methods.cclnet.coupling import (
    couple,
    identities_of_both,
    is_coupled,
    match,
    numbered_alone,
)
from reid_core.methods.cclnet.settings import (
    INPUTS,
    Config,
    ImageStage,
    seed_of,
    shares_prototypes,
)
from reid_core.methods.cclnet.stages import Images, Prompting
from reid_core.methods.refinement import refined
from reid_core.methods.teacher import encoder_state
from reid_core.models.clip import Clip
from reid_core.models.encoders import TwoStemEncoder
from reid_core.transforms import Augmentation
from reid_core.types import OUTLIER, Modality


def supervision(config: Config) -> str:
    """What it is told about the training identities: nothing, but for the upper bound."""
    return "none" if config.labels == "clusters" else "identities"


def needs_text(config: Config) -> bool:
    """Whether words are learned, for which the model must have a text tower."""
    return config.image_to_text > 0


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    return ("prepare", "prompts", "align") if config.image_to_text > 0 else ("align",)


def batch_rows(config: Config) -> dict[str, int]:
    """Rows of a global batch per modality, under the keys that decide it."""
    found = {}
    for name in stages(config):
        settings = getattr(config, name)
        if name == "prompts":
            found["cclnet.prompts.batch_size"] = settings.batch_size
        else:
            rows = settings.clusters_per_batch * settings.instances
            found[f"cclnet.{name}.clusters_per_batch x instances"] = rows
    return found


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """The paper's one view per image, or what `views` asks for."""
    return views.augmentations(config.views, base)


# Stages 0 and 2, between epochs ------------------------------------------------------------------


def cluster(
    config: Config, features: np.ndarray, *, owners: None = None, search: Search = nearest
) -> np.ndarray:
    """Pseudo labels (n,) int64 of one modality's features (n, D), unit rows; -1 = outlier."""
    settings = config.clustering
    return clustering.cluster(
        features,
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.eps,
        min_samples=settings.min_samples,
        search=search,
    )


def begin_epoch(
    config: Config,
    stage: str,
    *,
    features: Mapping[Modality, np.ndarray],
    labels: Mapping[Modality, np.ndarray],
    owners: None = None,
    epoch: int,
    seed: int,
    search: Search = nearest,
    cameras: object = None,
) -> Epoch:
    """Banks, pairs, swap and plan of one epoch; a pure function of its arguments.

    Args:
        config: the method's configuration.
        stage: "prepare" or "align".
        features: per modality (n, D) float32 unit rows, in row order.
        labels: per modality (n,) from `cluster`, or given classes, of which those that occur in
            one modality only become -1.
        owners: there are no captions.
        epoch: epoch number within the stage, from 0.
        seed: run seed; the plan depends on (seed, stage, epoch) only.
        search: for joint clusters and for neighbors that vote.
        cameras: not asked for.

    Raises:
        ValueError: a modality has no cluster, or given identities no person of both; names what
            to change.
    """
    warnings: tuple[str, ...] = ()
    if config.labels == "identities":
        labels, warnings = identities_of_both(labels)
    elif config.labels == "within":
        labels = {m: numbered_alone(labels[m]) for m in INPUTS}
    for modality in INPUTS:
        if labels[modality].max(initial=OUTLIER) == OUTLIER:
            settings = config.clustering
            raise ValueError(
                f"no cluster in the {modality} modality ({len(labels[modality])} images, "
                f"eps={settings.eps}, k1={settings.k1}, min_samples={settings.min_samples}): "
                "raise eps or k1, or lower min_samples"
            )
    banks = {
        m: functional.normalize(
            torch.as_tensor(clustering.centroids(features[m], labels[m]), dtype=torch.float32)
        )
        for m in INPUTS
    }
    given = config.labels == "identities"
    if config.matching.method == "hungarian" or given or not is_coupled(config, epoch):
        pairs = match(config, banks, epoch=epoch)
    else:
        pairs = named_pairs(config, banks, features, labels, search=search)
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for m in INPUTS if config.refine.on else ():
        of_side, numbers = refined(config.refine, m, features[m], labels[m], search=search)
        arrays, counts = arrays | of_side, counts | numbers
    similarity = (
        (banks[Modality.VISIBLE][pairs[:, 0]] * banks[Modality.INFRARED][pairs[:, 1]])
        .sum(dim=1)
        .numpy()
    )
    if config.swap.when in ("epoch", "epoch_once") or shares_prototypes(config):
        banks = couple(config, banks, pairs)
    return Epoch(
        plan=_plan(getattr(config, stage), stage, labels, epoch=epoch, seed=seed),
        labels=dict(labels),
        banks={m: bank.numpy() for m, bank in banks.items()},
        pairs=pairs,
        similarity=similarity,
        arrays=arrays,
        counts=counts,
        warnings=warnings + _warnings(getattr(config, stage), banks),
    )


def _warnings(settings: ImageStage, banks: Mapping[Modality, Tensor]) -> tuple[str, ...]:
    wanted = settings.clusters_per_batch
    return tuple(
        f"only {len(banks[m])} {m} clusters for clusters_per_batch={wanted}: every batch repeats "
        "them"
        for m in INPUTS
        if len(banks[m]) < wanted
    )


def _plan(
    settings: ImageStage,
    stage: str,
    labels: Mapping[Modality, np.ndarray],
    *,
    epoch: int,
    seed: int,
) -> dict[Modality, np.ndarray]:
    num_clusters, num_instances = settings.clusters_per_batch, settings.instances
    kept = [int((labels[m] != OUTLIER).sum()) for m in INPUTS]
    num_batches = settings.batches_per_epoch or sampling.num_batches(
        kept[0], kept[1], num_clusters=num_clusters, num_instances=num_instances
    )
    return {
        m: sampling.pk_plan(
            labels[m],
            num_clusters=num_clusters,
            num_instances=num_instances,
            num_batches=num_batches,
            seed=seed_of(seed, stage, m),
            epoch=epoch,
        )
        for m in INPUTS
    }


# What the machinery opens ------------------------------------------------------------------------


def open_stage(
    config: Config,
    name: str,
    clip: Clip,
    *,
    height: int,
    width: int,
    identities: None = None,
    handed: Mapping[str, Tensor],
    seed: int,
) -> Stage:
    """One stage, ready to train from fresh CLIP weights."""
    encoder = TwoStemEncoder(clip, height=height, width=width)
    if name == "prompts":
        return Prompting(config, clip, encoder, handed=handed, seed=seed)
    return Images(config, name, encoder, handed=handed)


def load_encoder(
    config: Config, clip: Clip, *, height: int, width: int, state: Mapping[str, Tensor] | None
) -> TwoStemEncoder:
    """The encoder that stage 0 or 2 has trained, or CLIP's own where `state` is None."""
    encoder = TwoStemEncoder(clip, height=height, width=width)
    if state is not None:
        encoder.load_state_dict(encoder_state(state))
    return encoder.eval()


def check(config: Config) -> list[str]:
    """Warnings about settings that have no effect."""
    coupled = config.swap.when != "never" or config.matching.shared
    if not coupled or config.labels == "identities":  # given identities are coupled from the start
        return []
    start, found = config.swap.start_epoch, []
    for name in stages(config):
        epochs = getattr(config, name).epochs
        if name != "prompts" and start >= epochs:
            found.append(
                f"cclnet.swap.start_epoch={start} is not reached in cclnet.{name}.epochs={epochs}: "
                f'the modalities are never coupled in stage "{name}"'
            )
    return found
