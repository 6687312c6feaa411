"""CPCL: weakly supervised text-image person retrieval with a prototypical memory per modality.

Zheng, Zhao, Lan, Zhang, Huang, Yang, Yu: "CPCL: Cross-Modal Prototypical Contrastive Learning for
Weakly Supervised Text-based Person Retrieval", arXiv 2401.10011. Trained from pairs of an image
and a caption, without identities.

No code was released and the body of the paper could not be read: the parts are the abstract's and
a follow-up's (ICPG), the formulas are a reconstruction (docs/methods.md says which is which). Told
in the order of an epoch:

cluster     images and captions apart, from normalized features without augmentation
OPLM        outliers get labels through the pairs
PMM         one prototype per cluster of either modality, renewed in every step
HCM         instances are matched with each other and with prototypes of both modalities

Here is what happens between epochs; `stages` holds what a worker does within them,
`settings` what can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from reid_core import clustering, mining, sampling
from reid_core.knn.products import on_host, take
from reid_core.method import BetweenEpochs, EpochPlan, Labels
from reid_core.methods.cpcl.settings import INPUTS, Config, uses_prototypes
from reid_core.types import OUTLIER, Modality

VISIBLE, TEXT = INPUTS
_ROWS = 1 << 14  # that are compared with their clusters at a time


# Between epochs ----------------------------------------------------------------------------------


def cluster(config: Config, modality: Modality, context: BetweenEpochs) -> np.ndarray:
    """Pseudo labels of one modality.

    Args:
        config: the method's settings.
        modality: images or captions. With `clustering.rows` "pairs" each image is taken once per
            caption, else once; one label per image comes out in both. An image without caption is
            an outlier.
        context: with the rows of the modality, and the image of each caption.

    Returns:
        int64 (n,), contiguous from 0; -1 = outlier.

    Reconstruction: after five related public codes; the granularity matters, see
    `Clustering.rows`.
    """
    settings, owners = config.clustering, context.owners
    features = context.rows(modality)
    rows = np.arange(len(features))
    if modality == VISIBLE:
        assert owners is not None
        rows = owners if settings.rows == "pairs" else np.unique(owners)
    of_rows = clustering.cluster(
        take(context.features[modality], rows),
        k1=settings.k1,
        k2=settings.k2,
        eps=settings.eps,
        min_samples=settings.min_samples,
        search=context.nearest,
    )
    # equal rows may fall apart where the k1 nearest of many equal ones are cut off
    means = _prototypes(features, of_rows, rows)
    similarity = np.full(len(rows), -np.inf)
    known = np.flatnonzero(of_rows != OUTLIER)
    for part in np.split(known, range(_ROWS, len(known), _ROWS)):
        similarity[part] = (features[rows[part]] * means[of_rows[part]]).sum(axis=1)
    return mining.contiguous(mining.vote(of_rows, rows, similarity, num_owners=len(features)))


def begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    """Mining, prototypes, co-occurring clusters and plan of one epoch.

    A pure function of its arguments; no pid is among them.

    Args:
        config: the method's settings.
        context: with the rows of images (n, D) and captions (N, D), and the image of each caption.
        labels: (n,) and (N,) from `cluster`, or given classes.

    Returns:
        `rows` holds the images and `captions` the captions of the same pairs; `pairs` one row per
        training pair whose sides both have a cluster, so that counting equal rows gives how often
        two clusters occur together.

    Raises:
        ValueError: no cluster in a modality although prototypes are asked for, or fewer pairs than
            a batch; names what to change.
    """
    owners, epoch = context.owners, context.epoch
    assert owners is not None  # the data of this method have captions
    features = {m: context.rows(m) for m in INPUTS}
    after = _mined(config, features, labels, owners)
    of_pairs = {VISIBLE: after[VISIBLE][owners], TEXT: after[TEXT]}
    if uses_prototypes(config, epoch):
        _require_clusters(config, after)
    prototypes = {
        VISIBLE: _prototypes(features[VISIBLE], of_pairs[VISIBLE], owners),
        TEXT: _prototypes(features[TEXT], of_pairs[TEXT]),
    }
    both = (of_pairs[VISIBLE] != OUTLIER) & (of_pairs[TEXT] != OUTLIER)
    pairs = np.stack([of_pairs[m][both] for m in INPUTS], axis=1)
    captions = _plan(config, of_pairs, epoch=epoch, seed=context.seed)
    captioned = np.unique(owners)
    neither = (of_pairs[VISIBLE] == OUTLIER) & (of_pairs[TEXT] == OUTLIER)
    return EpochPlan(
        rows={VISIBLE: owners[captions]},
        captions=captions,
        labels=after,
        prototypes=prototypes,
        pairs=pairs,
        similarity=(prototypes[VISIBLE][pairs[:, 0]] * prototypes[TEXT][pairs[:, 1]]).sum(axis=1),
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
    own: Callable[..., mining.Mined] = {
        "nearest": mining.mine_nearest,
        "prototype": mining.mine_prototype,
    }[config.mining.vote]
    least, sides = config.mining.min_similarity, config.mining.sides
    images, texts = labels[VISIBLE][owners], labels[TEXT]
    image_similarity = np.zeros(len(owners))
    mined_images, mined_texts = images, texts
    if sides in ("image", "both"):
        rows = features[VISIBLE][owners]
        result = own(mining.contiguous(images), texts, rows, min_similarity=least)
        mined_images, image_similarity = result.labels, result.similarity
    if sides in ("text", "both"):
        result = own(mining.contiguous(texts), images, features[TEXT], min_similarity=least)
        mined_texts = result.labels
    voted = mining.vote(mined_images, owners, image_similarity, num_owners=len(features[VISIBLE]))
    return {VISIBLE: mining.contiguous(voted), TEXT: mining.contiguous(mined_texts)}


def _require_clusters(config: Config, labels: Mapping[Modality, np.ndarray]) -> None:
    settings = config.clustering
    for m in INPUTS:
        if labels[m].max(initial=OUTLIER) == OUTLIER:
            raise ValueError(
                f"no cluster among {len(labels[m])} rows of the {m} modality (eps={settings.eps}, "
                f"k1={settings.k1}, min_samples={settings.min_samples}): raise "
                "cpcl.clustering.eps or lower min_samples there, or start later with "
                "cpcl.prototypes_from; docs/troubleshooting.md"
            )


def _prototypes(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """(C, D) normalized mean of each cluster over its pairs, whose rows may repeat."""
    means = on_host(clustering.centroids(features, labels, rows=rows))
    units: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)
    return units


def _plan(
    config: Config, of_pairs: Mapping[Modality, np.ndarray], *, epoch: int, seed: int
) -> np.ndarray:
    """(batches, B) caption rows."""
    settings = config.train
    remaining = np.arange(len(of_pairs[TEXT]))
    if config.mining.leftover == "drop":
        remaining = np.flatnonzero((of_pairs[VISIBLE] != OUTLIER) | (of_pairs[TEXT] != OUTLIER))
    if len(remaining) < settings.batch_size:
        raise ValueError(
            f"{len(remaining)} training pairs do not fill a batch of cpcl.train.batch_size="
            f"{settings.batch_size}: lower it"
            + (
                ", or set cpcl.mining.leftover=instance"
                if len(remaining) < len(of_pairs[TEXT])
                else ""
            )
        )
    if settings.sampler == "pk":
        return sampling.pk_plan(
            of_pairs[VISIBLE],
            num_clusters=settings.batch_size // settings.instances,
            num_instances=settings.instances,
            num_batches=len(remaining) // settings.batch_size,
            seed=seed,
            epoch=epoch,
        )
    places = sampling.shuffled_batches(
        len(remaining), batch_size=settings.batch_size, seed=seed, epoch=epoch
    )
    batches: np.ndarray = remaining[places]
    return batches


def _outliers(labels: np.ndarray) -> float:
    return float((labels == OUTLIER).sum())
