"""CPCL: weakly supervised text-image person retrieval with a prototypical memory per modality.

Zheng, Zhao, Lan, Zhang, Huang, Yang, Yu: "CPCL: Cross-Modal Prototypical Contrastive Learning for
Weakly Supervised Text-based Identity Retrieval", arXiv 2401.10011. Trained from pairs of an image
and a caption, without identities.

No code was released and the body of the paper could not be read: the parts are the abstract's and
a follow-up's (ICPG), the formulas are a reconstruction (docs/methods.md says which is which). Told
in the order of an epoch:

cluster     images and captions apart, from normalized features without augmentation
OPLM        outliers get labels through the pairs
PMM         one prototype per cluster of either modality, renewed in every step
HCM         instances are matched with each other and with prototypes of both modalities

Here is what happens between epochs; `cpcl_stages` holds what a worker does within them,
`cpcl_settings` the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from reid_core import clustering, mining, sampling
from reid_core.knn.neighbours import Search
from reid_core.knn.search import nearest
from reid_core.method import Epoch, Stage
from reid_core.methods.cpcl.settings import INPUTS, Config, check, uses_prototypes
from reid_core.methods.cpcl.stages import Train
from reid_core.models.clip import Clip
from reid_core.models.text_image import TextImageEncoder
from reid_core.transforms import Augmentation
from reid_core.types import OUTLIER, Modality

__all__ = [
    "INPUTS",
    "Config",
    "augmentations",
    "batch_rows",
    "begin_epoch",
    "check",
    "cluster",
    "load_encoder",
    "open_stage",
    "stages",
    "supervision",
]

VISIBLE, TEXT = INPUTS


def supervision(config: Config) -> str:
    """What it is told about the training identities: which caption describes which image."""
    return "identities" if config.labels == "identities" else "pairs"


def needs_text(config: Config) -> bool:
    """Always: queries are sentences."""
    return True


def stages(config: Config) -> tuple[str, ...]:
    """There is one."""
    return ("train",)


def batch_rows(config: Config) -> dict[str, int]:
    """Pairs of a global batch, under the key that decides them."""
    settings = config.train
    if settings.sampler == "pk":
        whole = settings.batch_size // settings.instances * settings.instances
        return {"cpcl.train.batch_size in whole cpcl.train.instances": whole}
    return {"cpcl.train.batch_size": settings.batch_size}


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """One view per image, which keeps its colours: the captions name them."""
    return {VISIBLE: (replace(base, grayscale=0.0),)}


# Between epochs ----------------------------------------------------------------------------------


def cluster(
    config: Config,
    features: np.ndarray,
    *,
    owners: np.ndarray | None = None,
    search: Search = nearest,
) -> np.ndarray:
    """Pseudo labels of one modality.

    Args:
        config: the method's settings.
        features: (n, D) float32 unit rows, of images or of captions, in row order.
        owners: (N,) int64 image of each caption where the features are those of images; None for
            captions. With `clustering.rows` "pairs" each image is taken once per caption, else
            once; one label per image comes out in both. An image without caption is an outlier.
        search: of nearest rows.

    Returns:
        int64 (n,), contiguous from 0; -1 = outlier.

    Reconstruction: after five related public codes; the granularity matters, see
    `Clustering.rows`.
    """
    settings = config.clustering
    rows = np.arange(len(features))
    if owners is not None:
        rows = owners if settings.rows == "pairs" else np.unique(owners)
    of_rows = clustering.cluster(
        features[rows],
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.eps,
        min_samples=settings.min_samples,
        search=search,
    )
    # equal rows may fall apart where the k1 nearest of many equal ones are cut off
    means = _prototypes(features[rows], of_rows)
    known = of_rows != OUTLIER
    similarity = np.full(len(rows), -np.inf)
    similarity[known] = (features[rows[known]] * means[of_rows[known]]).sum(axis=1)
    return mining.contiguous(mining.vote(of_rows, rows, similarity, num_owners=len(features)))


def begin_epoch(
    config: Config,
    stage: str,
    *,
    features: Mapping[Modality, np.ndarray],
    labels: Mapping[Modality, np.ndarray],
    owners: np.ndarray,
    epoch: int,
    seed: int,
    search: Search = nearest,
    cameras: object = None,
) -> Epoch:
    """Mining, banks, co-occurring clusters and plan of one epoch.

    A pure function of its arguments; no person id is among them.

    Args:
        config: the method's settings.
        stage: "train".
        features: (n, D) float32 unit rows of images and (N, D) of captions, in row order.
        labels: (n,) and (N,) from `cluster`, or given classes.
        owners: (N,) int64 image row of each caption.
        epoch: from 0.
        seed: run seed; the plan depends on (seed, epoch) only.

    Returns:
        `plan` holds the images and `captions` the captions of the same pairs; `pairs` one row per
        training pair whose sides both have a cluster, so that counting equal rows gives how often
        two clusters occur together.
        search, cameras: not asked for.

    Raises:
        ValueError: no cluster in a modality although prototypes are asked for, or fewer pairs than
            a batch; names what to change.
    """
    after = _mined(config, features, labels, owners)
    of_pairs = {VISIBLE: after[VISIBLE][owners], TEXT: after[TEXT]}
    if uses_prototypes(config, epoch):
        _require_clusters(config, after)
    banks = {
        VISIBLE: _prototypes(features[VISIBLE][owners], of_pairs[VISIBLE]),
        TEXT: _prototypes(features[TEXT], of_pairs[TEXT]),
    }
    both = (of_pairs[VISIBLE] != OUTLIER) & (of_pairs[TEXT] != OUTLIER)
    pairs = np.stack([of_pairs[m][both] for m in INPUTS], axis=1)
    captions = _plan(config, of_pairs, epoch=epoch, seed=seed)
    captioned = np.unique(owners)
    neither = (of_pairs[VISIBLE] == OUTLIER) & (of_pairs[TEXT] == OUTLIER)
    return Epoch(
        plan={VISIBLE: owners[captions]},
        captions=captions,
        labels=after,
        banks=banks,
        pairs=pairs,
        similarity=(banks[VISIBLE][pairs[:, 0]] * banks[TEXT][pairs[:, 1]]).sum(axis=1),
        counts={
            "visible_outliers_before_mining": _outliers(labels[VISIBLE][captioned]),
            "visible_outliers_after_mining": _outliers(after[VISIBLE][captioned]),
            "text_outliers_before_mining": _outliers(labels[TEXT]),
            "text_outliers_after_mining": _outliers(after[TEXT]),
            "pairs_of_outliers": float(neither.sum()),
        },
    )


def _mined(
    config: Config,
    features: Mapping[Modality, np.ndarray],
    labels: Mapping[Modality, np.ndarray],
    owners: np.ndarray,
) -> dict[Modality, np.ndarray]:
    """Labels after mining, contiguous. Both sides read the labels from before."""
    mine: Callable[..., mining.Mined] = {
        "nearest": mining.mine_nearest,
        "prototype": mining.mine_prototype,
    }[config.mining.vote]
    least, sides = config.mining.min_similarity, config.mining.sides
    images, texts = labels[VISIBLE][owners], labels[TEXT]
    image_similarity = np.zeros(len(owners))
    mined_images, mined_texts = images, texts
    if sides in ("image", "both"):
        rows = features[VISIBLE][owners]
        found = mine(mining.contiguous(images), texts, rows, min_similarity=least)
        mined_images, image_similarity = found.labels, found.similarity
    if sides in ("text", "both"):
        found = mine(mining.contiguous(texts), images, features[TEXT], min_similarity=least)
        mined_texts = found.labels
    voted = mining.vote(mined_images, owners, image_similarity, num_owners=len(features[VISIBLE]))
    return {VISIBLE: mining.contiguous(voted), TEXT: mining.contiguous(mined_texts)}


def _require_clusters(config: Config, labels: Mapping[Modality, np.ndarray]) -> None:
    settings = config.clustering
    for m in INPUTS:
        if labels[m].max(initial=OUTLIER) == OUTLIER:
            raise ValueError(
                f"no cluster among {len(labels[m])} rows of the {m} modality (eps={settings.eps}, "
                f"k1={settings.k1}, min_samples={settings.min_samples}): raise eps or k1, lower "
                "min_samples, or start later with cpcl.prototypes_from"
            )


def _prototypes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, D) normalized mean of each cluster over its pairs."""
    means = clustering.centroids(features, labels)
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)


def _plan(
    config: Config, of_pairs: Mapping[Modality, np.ndarray], *, epoch: int, seed: int
) -> np.ndarray:
    """(batches, B) caption rows."""
    settings = config.train
    kept = np.arange(len(of_pairs[TEXT]))
    if config.mining.leftover == "drop":
        kept = np.flatnonzero((of_pairs[VISIBLE] != OUTLIER) | (of_pairs[TEXT] != OUTLIER))
    if len(kept) < settings.batch_size:
        raise ValueError(
            f"{len(kept)} training pairs do not fill a batch of cpcl.train.batch_size="
            f"{settings.batch_size}: lower it"
            + (", or set cpcl.mining.leftover=instance" if len(kept) < len(of_pairs[TEXT]) else "")
        )
    if settings.sampler == "pk":
        return sampling.pk_plan(
            of_pairs[VISIBLE],
            num_clusters=settings.batch_size // settings.instances,
            num_instances=settings.instances,
            num_batches=len(kept) // settings.batch_size,
            seed=seed,
            epoch=epoch,
        )
    places = sampling.shuffled_batches(
        len(kept), batch_size=settings.batch_size, seed=seed, epoch=epoch
    )
    return kept[places]


def _outliers(labels: np.ndarray) -> float:
    return float((labels == OUTLIER).sum())


# What the machinery calls ------------------------------------------------------------------------


def open_stage(
    config: Config,
    name: str,
    clip: Clip,
    *,
    height: int,
    width: int,
    identities: Mapping[Modality, np.ndarray] | None = None,
    handed: Mapping[str, Tensor],
    seed: int,
) -> Stage:
    """The stage, ready to train from CLIP's weights, all of which learn.

    Given identities reach it as the labels of its epochs.
    """
    return Train(config, TextImageEncoder(clip, height=height, width=width), seed=seed)


def load_encoder(
    config: Config, clip: Clip, *, height: int, width: int, state: Mapping[str, Tensor] | None
) -> TextImageEncoder:
    """The trained encoder from the stage's module state, or CLIP's own where `state` is None."""
    encoder = TextImageEncoder(clip, height=height, width=width)
    if state is not None:
        encoder.load_state_dict(dict(state))
    return encoder.eval()
