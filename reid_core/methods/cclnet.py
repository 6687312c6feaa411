"""CCLNet: unsupervised visible-infrared re-ID with CLIP prompts and memory swapping.

Chen, Zhang, Tan, Qu, Xie: "Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person
Re-Identification", ACM MM 2023. Told in the paper's order:

stage 0 "prepare"  cluster each modality, contrast images with their cluster prototypes
stage 1 "prompts"  learn four prompt tokens per stage-0 cluster against frozen image features
stage 2 "align"    cluster again; swap matched prototypes between the modalities; text guides images

Stages 1 and 2 start from fresh CLIP weights; only stage 0's last labels are handed on. The
settings, with the published values as defaults, are in `cclnet_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core import clustering, losses, matching, memory, sampling
from reid_core.memory import ClusterMemory
from reid_core.methods.cclnet_settings import Config, ImageStage
from reid_core.models.clip import Clip
from reid_core.models.encoders import Features, TwoStemEncoder
from reid_core.models.prompts import PromptLearner
from reid_core.types import OUTLIER, Modality, Term

MODALITIES = (Modality.VISIBLE, Modality.INFRARED)
TEMPLATES = {
    Modality.VISIBLE: "A visible photo of a",
    Modality.INFRARED: "An infrared photo of a",
}


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    return ("prepare", "prompts", "align") if config.image_to_text > 0 else ("align",)


def build(clip: Clip, *, height: int, width: int) -> TwoStemEncoder:
    """The encoder of section 1: two stems, one trunk, attention pool, GeM, neck."""
    return TwoStemEncoder(clip, height=height, width=width)


# Stages 0 and 2, between epochs ------------------------------------------------------------------


def cluster(config: Config, features: Tensor | np.ndarray) -> np.ndarray:
    """Pseudo labels (n,) int64 of one modality's features (n, D), unit rows; -1 = outlier."""
    settings = config.clustering
    return clustering.cluster(
        features,
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.eps,
        min_samples=settings.min_samples,
    )


@dataclass(frozen=True)
class Epoch:
    """What one epoch trains on. Labels and plan rows index the rows of their own modality.

    Attributes:
        labels: per modality (n,) int64, -1 = outlier.
        banks: per modality (C, D) float32 unit rows, already swapped where due.
        pairs: (M, 2) int64 matched clusters (visible, infrared); empty where nothing is coupled.
        similarity: (M,) cosine of the matched prototypes.
        plan: per modality (batches, P K) int64, the global batches.
    """

    labels: dict[Modality, np.ndarray]
    banks: dict[Modality, Tensor]
    pairs: np.ndarray
    similarity: np.ndarray
    plan: dict[Modality, np.ndarray]


def begin_epoch(
    config: Config,
    stage: str,
    *,
    features: Mapping[Modality, np.ndarray],
    labels: Mapping[Modality, np.ndarray],
    epoch: int,
    seed: int,
) -> Epoch:
    """Banks, pairs, swap and plan of one epoch (steps 3 to 5); a pure function of its arguments.

    Args:
        config: the method's configuration.
        stage: "prepare" or "align".
        features: per modality (n, D) float32 unit rows, in row order.
        labels: per modality (n,) from `cluster`, or given classes.
        epoch: epoch number within the stage, from 0.
        seed: run seed; the plan depends on (seed, stage, epoch) only.

    Raises:
        ValueError: a modality has no cluster; names it and what to change.
    """
    for modality in MODALITIES:
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
        for m in MODALITIES
    }
    pairs = np.empty((0, 2), dtype=np.int64)
    if stage == "align":
        pairs = match(config, banks, epoch=epoch)
    similarity = (
        (banks[Modality.VISIBLE][pairs[:, 0]] * banks[Modality.INFRARED][pairs[:, 1]])
        .sum(dim=1)
        .numpy()
    )
    if config.swap.when in ("epoch", "epoch_once") or shares_prototypes(config):
        banks = couple(config, banks, pairs)
    return Epoch(
        labels=dict(labels),
        banks=banks,
        pairs=pairs,
        similarity=similarity,
        plan=_plan(getattr(config, stage), stage, labels, epoch=epoch, seed=seed),
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
    kept = [int((labels[m] != OUTLIER).sum()) for m in MODALITIES]
    num_batches = settings.batches_per_epoch or sampling.num_batches(
        kept[0], kept[1], num_clusters=num_clusters, num_instances=num_instances
    )
    return {
        m: sampling.pk_plan(
            labels[m],
            num_clusters=num_clusters,
            num_instances=num_instances,
            num_batches=num_batches,
            seed=stream(seed, stage, m),
            epoch=epoch,
        )
        for m in MODALITIES
    }


def stream(seed: int, stage: str, modality: Modality) -> int:
    """Seed of everything random in one stage and modality; no two of them share draws."""
    return seed * 8 + ("prepare", "prompts", "align").index(stage) * 2 + MODALITIES.index(modality)


def shares_prototypes(config: Config) -> bool:
    """Whether matched clusters share one prototype."""
    return config.matching.shared or config.labels == "identities"


def match(config: Config, banks: Mapping[Modality, Tensor], *, epoch: int) -> np.ndarray:
    """Matched clusters (M, 2) of two banks; empty before swapping starts.

    With given identities, equal classes are the pairs.
    """
    if config.labels == "identities":
        both = min(len(banks[m]) for m in MODALITIES)
        return np.repeat(np.arange(both, dtype=np.int64)[:, None], 2, axis=1)
    coupled = config.swap.when != "never" or config.matching.shared
    if not coupled or epoch < config.swap.start_epoch:
        return np.empty((0, 2), dtype=np.int64)
    sides = [banks[m] for m in MODALITIES]
    if config.matching.centred:
        sides = [matching.centred(side) for side in sides]
    return matching.hungarian_pairs(*sides, min_similarity=config.matching.min_similarity)


def couple(
    config: Config, banks: Mapping[Modality, Tensor], pairs: np.ndarray
) -> dict[Modality, Tensor]:
    """Swap, or share, the prototypes of all given pairs."""
    visible, infrared = (banks[m] for m in MODALITIES)
    if shares_prototypes(config):
        new = memory.share(visible, infrared, pairs)
    elif config.swap.order == "sequential":
        new = memory.swap_sequential(visible, infrared, pairs, keep=config.swap.keep)
    else:
        new = memory.swap(visible, infrared, pairs, keep=config.swap.keep)
    return dict(zip(MODALITIES, new, strict=True))


# Stages 0 and 2, within an epoch -----------------------------------------------------------------


def train_only(stage: str, encoder: TwoStemEncoder, config: Config) -> None:
    """Switch gradients on for what a stage trains: stage 0 leaves the attention pool alone."""
    encoder.requires_grad_(True)
    encoder.neck.bias.requires_grad_(False)
    if stage == "prepare" or config.image_to_text == 0:
        encoder.attnpool.requires_grad_(False)


@dataclass
class Guidance:
    """What stage 1 hands to stage 2: text anchors (C, E) and stage-0 labels (n,) per modality."""

    anchors: dict[Modality, Tensor]
    labels: dict[Modality, Tensor]


def terms(
    config: Config,
    features: Mapping[Modality, Features],
    labels: Mapping[Modality, Tensor],
    memories: Mapping[Modality, ClusterMemory],
    *,
    rows: Mapping[Modality, Tensor],
    guidance: Guidance | None,
) -> dict[str, Term]:
    """The losses of one step on this worker's slice of the global batch.

    L = L_v + L_r + lambda (I_v + I_r), means over rows; I leaves out stage-0 outliers.

    Args:
        config: the method's configuration.
        features: per modality, the encoder's outputs for B rows.
        labels: per modality (B,) cluster labels of this epoch.
        memories: per modality, this epoch's prototypes.
        rows: per modality (B,) rows of the modality, to look up stage-0 labels.
        guidance: anchors and labels of stages 0 and 1; None in stage 0.

    Reference: CCLNet, stages 0 and 2.
    """
    found: dict[str, Term] = {}
    for m in MODALITIES:
        contrast = losses.cluster_contrast(
            functional.normalize(features[m].neck),
            labels[m],
            memories[m].bank,
            temperature=memories[m].temperature,
        )
        found[str(m)] = Term(contrast, losses.count_valid(labels[m]))
    if guidance is not None:
        for m in MODALITIES:
            given = guidance.labels[m][rows[m]]
            text = losses.image_to_text(
                features[m].projected, given, guidance.anchors[m], smoothing=config.smoothing
            )
            found[f"{m}_to_text"] = Term(text, losses.count_valid(given), config.image_to_text)
    return found


def update(
    config: Config,
    memories: Mapping[Modality, ClusterMemory],
    x: Mapping[Modality, Tensor],
    labels: Mapping[Modality, Tensor],
    *,
    pairs: np.ndarray,
    epoch: int,
) -> None:
    """Momentum update of both banks with the global batch, then the swap, in place.

    Called after `backward`, with the features of all workers in (rank, position) order, so that
    every worker applies the same update.

    Args:
        config: the method's configuration.
        memories: per modality, this worker's replica of the bank.
        x: per modality (B, D) unit rows of the global batch.
        labels: per modality (B,).
        pairs: this epoch's matched clusters.
        epoch: epoch number within the stage, from 0.
    """
    for m in MODALITIES:
        memories[m].update(x[m], labels[m])
    if config.swap.when == "step" and not shares_prototypes(config):
        pairs = match(config, {m: memories[m].bank for m in MODALITIES}, epoch=epoch)
    elif config.swap.when == "epoch_once" and not shares_prototypes(config):
        return
    if not len(pairs):
        return
    visible, infrared = (memories[m] for m in MODALITIES)
    if shares_prototypes(config):
        visible.bank, infrared.bank = memory.share(visible.bank, infrared.bank, pairs)
        return
    swap_rows = {
        "simultaneous": memory.swap_rows,
        "sequential": memory.swap_rows_sequential,
    }[config.swap.order]
    visible.bank, infrared.bank = swap_rows(
        visible.bank,
        infrared.bank,
        pairs,
        labels[Modality.VISIBLE],
        labels[Modality.INFRARED],
        keep=config.swap.keep,
    )


# Stage 1 -----------------------------------------------------------------------------------------


class Prompts(nn.Module):
    """One prompt learner per modality, one row of four tokens per stage-0 cluster.

    Args:
        clip: source of the frozen text tower.
        num_classes: stage-0 clusters per modality.
        seed: of the tokens' first values.
    """

    def __init__(self, clip: Clip, num_classes: Mapping[Modality, int], *, seed: int) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(
            {
                str(m): PromptLearner(
                    clip.text,
                    num_classes=num_classes[m],
                    prefix=TEMPLATES[m],
                    seed=stream(seed, "prompts", m),
                )
                for m in MODALITIES
            }
        )

    def forward(self, labels: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
        """Text features (B, E) per modality of the given classes (B,), not normalised."""
        return {m: self.learners[str(m)](labels[m]) for m in MODALITIES}

    @torch.no_grad()
    def anchors(self) -> dict[Modality, Tensor]:
        """Text features (C, E) of every class, the constants of stage 2."""
        return {m: self.learners[str(m)](None) for m in MODALITIES}


@dataclass(frozen=True)
class PromptBatch:
    """A slice of a stage-1 batch of one modality: image features, text features, classes."""

    images: Tensor
    texts: Tensor
    labels: Tensor


def prompt_terms(
    config: Config,
    anchors: Mapping[Modality, PromptBatch],
    candidates: Mapping[Modality, PromptBatch],
) -> dict[str, Term]:
    """L = sum over modalities of SC(image, text) + SC(text, image).

    Args:
        config: the method's configuration.
        anchors: this worker's rows.
        candidates: the rows of the global batch that they are contrasted with.

    Reference: CCLNet, stage 1.
    """
    found: dict[str, Term] = {}
    for m in MODALITIES:
        mine, everyone = anchors[m], candidates[m]
        temperature = config.prompts.temperature
        to_text = losses.supervised_contrast(
            mine.images, everyone.texts, mine.labels, everyone.labels, temperature=temperature
        )
        to_image = losses.supervised_contrast(
            mine.texts, everyone.images, mine.labels, everyone.labels, temperature=temperature
        )
        count = len(mine.labels)
        found[f"{m}_to_text"] = Term(to_text, count)
        found[f"text_to_{m}"] = Term(to_image, count)
    return found
