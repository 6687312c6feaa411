"""BMIL: one clustering over both modalities, balanced, and prototypes that are cut by modality.

Wang, Gong, Li, Ji: "Modality-Aware Bias Mitigation and Invariance Learning for Unsupervised
Visible-Infrared Person Re-Identification", AAAI 2026. Told in the paper's order, after its public
code where the two could differ:

stage 1 "intra"  cluster each modality alone, contrast images with two banks of its prototypes
stage 2 "joint"  in turn a step of stage 1 and a step on joint labels: one clustering of both
                 modalities, whose neighbors come half from either; every joint cluster has one
                 prototype per modality, and its images are drawn to both

Stage 2 starts from stage 1's last weights. Here is what happens between epochs, where all features
are known; `stages` holds what a worker does within them, `labels` subsets, proxies and batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from reid_core import clustering, mining, sampling
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features, stacked
from reid_core.method import BetweenEpochs, EpochPlan, Labels
from reid_core.methods import mutual_agreement
from reid_core.methods.bmil.joint_labels import joint_labels, separate_clusters
from reid_core.methods.bmil.labels import (
    Proxies,
    camera_plan,
    split_proxies,
    subset_parts,
)
from reid_core.methods.bmil.settings import INPUTS, JOINT, SEPARATE, Config, seed_of
from reid_core.methods.bmil.voting import votes_of_both, votes_of_each
from reid_core.methods.camera_rows import rows_to_compare
from reid_core.types import OUTLIER, Modality

# Between epochs ----------------------------------------------------------------------------------


def begin_epoch(config: Config, context: BetweenEpochs, labels: Labels) -> EpochPlan:
    """Labels of both kinds, their prototypes and batches; a pure function of its arguments.

    Args:
        config: the method's configuration.
        context: of stage "intra" or "joint"; which images take part is drawn from (seed, stage,
            epoch), and cameras are read where `sampling.camera_aware` asks for them.
        labels: per modality (n,), given classes where there are any.

    Returns:
        In stage "joint" even batches have separate labels and odd ones joint ones.

    Raises:
        ValueError: no cluster; names what to change.
    """
    stage, search = context.stage, context.nearest
    features = {m: context.features[m] for m in INPUTS}
    compared = {m: rows_to_compare(config.clustering.camera_scaling, context, m) for m in INPUTS}
    parts = _parts(config, context, len(features[Modality.VISIBLE]))
    steps = _labels_of_steps(config, stage, compared, labels, parts, search)
    for kind, of_kind in steps.items():
        _check_clusters(config, kind, of_kind)
    arrays, counts = _memories(config, features, steps)
    if config.refine.on:
        for kind, of_kind in steps.items():
            visible = parts[kind == JOINT]
            vote = votes_of_both if kind == JOINT else votes_of_each
            votes, numbers = vote(config.refine, compared, of_kind, visible, search=search)
            arrays |= {f"{kind}.{name}": x for name, x in votes.items()}
            counts |= {f"{kind}_{name}": x for name, x in numbers.items()}
    weak: tuple[str, ...] = ()
    if SEPARATE in steps and config.labels != "identities":
        banks = [arrays[f"bank.{m}"] for m in INPUTS]
        share, weak = mutual_agreement.agreement(*banks, epoch=context.epoch)
        counts |= share
    plans = {kind: _plan(config, context, kind, of_kind) for kind, of_kind in steps.items()}
    kinds = list(steps)
    last = steps[kinds[-1]]
    pairs = _of_both(last) if stage == "joint" else np.empty((0, 2), dtype=np.int64)
    num_batches = len(next(iter(plans.values()))[INPUTS[0]])
    return EpochPlan(
        rows={m: _in_turn([plans[kind][m] for kind in kinds]) for m in INPUTS},
        labels=last,
        place_labels={
            m: _in_turn([steps[kind][m][plans[kind][m]] for kind in kinds]) for m in INPUTS
        },
        kinds=tuple(kinds) * num_batches,
        pairs=pairs,
        similarity=_similarity(arrays, pairs) if len(pairs) else np.empty(0, dtype=np.float32),
        arrays=arrays,
        counts=counts,
        warnings=_warnings(config, stage, steps) + weak,
    )


def _labels_of_steps(
    config: Config,
    stage: str,
    features: Mapping[Modality, Features],
    labels: Labels,
    parts: tuple[np.ndarray, np.ndarray],
    search: Search,
) -> dict[str, Labels]:
    """The labels of every kind of step that the stage has: given ones, or clusters."""
    how, steps = config.clustering, dict[str, Labels]()
    given = None
    if config.labels != "clusters":
        given = {m: mining.contiguous(y) for m, y in labels.items()}
    if stage == "intra" or config.joint.separate_steps:
        steps[SEPARATE] = given or separate_clusters(how, features, parts[0], search=search)
    if stage == "joint" and config.labels == "identities":
        steps[JOINT] = labels
    elif stage == "joint":
        steps[JOINT] = joint_labels(how, features, parts[1], search=search, given=given)
    return steps


def _parts(
    config: Config, context: BetweenEpochs, num_visible: int
) -> tuple[np.ndarray, np.ndarray]:
    """Visible rows that are clustered alone, and those that are clustered jointly."""
    ratio = config.clustering.subset if config.labels == "clusters" else 1.0
    key = seed_of(context.seed, context.stage, SEPARATE, Modality.VISIBLE)
    return subset_parts(num_visible, ratio, seed=key, epoch=context.epoch)


def _memories(
    config: Config,
    features: Mapping[Modality, Features],
    steps: Mapping[str, Labels],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """First prototypes of every kind of label; numbers for the log."""
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    if SEPARATE in steps:
        for m, y in steps[SEPARATE].items():
            arrays[f"bank.{m}"] = clustering.unit_centroids(features[m], y).numpy()
            counts[f"separate_clusters_{m}"] = float(len(arrays[f"bank.{m}"]))
    if JOINT in steps:
        proxies = split_proxies(steps[JOINT]) if config.memory.split else _unsplit(steps)
        of_rows = [proxies.of_rows[m] for m in INPUTS]
        together = stacked([features[m] for m in INPUTS])
        bank = clustering.unit_centroids(together, np.concatenate(of_rows))
        arrays[f"bank.{JOINT}"] = bank.numpy()
        arrays["proxy_labels"] = proxies.labels
        of_label = proxies.of_label(steps[JOINT])
        arrays |= {f"proxies.{m}": of_label[m] for m in INPUTS}
        counts |= _joint_counts(steps[JOINT], proxies)
    return arrays, counts


def _unsplit(steps: Mapping[str, Labels]) -> Proxies:
    """One proxy for every joint label, whatever its modalities."""
    labels = steps[JOINT]
    num = 1 + int(max(y.max(initial=OUTLIER) for y in labels.values()))
    return Proxies(np.arange(num), dict(labels))


def _joint_counts(labels: Labels, proxies: Proxies) -> dict[str, float]:
    num = len(np.unique(proxies.labels))
    left_out = sum(int((y == OUTLIER).sum()) for y in labels.values())
    return {
        "joint_clusters": float(num),
        "joint_clusters_of_both": len(_of_both(labels)) / num,
        "proxies": float(len(proxies.labels)),
        "joint_left_out": left_out / sum(map(len, labels.values())),
    }


def _of_both(labels: Labels) -> np.ndarray:
    """(M, 2) joint labels that both modalities have, as pairs of equal labels."""
    visible, infrared = (np.setdiff1d(labels[m], [OUTLIER]) for m in INPUTS)
    both = np.intersect1d(visible, infrared)
    return np.stack([both, both], axis=1)


def _similarity(arrays: Mapping[str, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """(M,) cosine of the two proxies of each label; (0,) where a label has one for both."""
    bank, labels = arrays[f"bank.{JOINT}"], arrays["proxy_labels"]
    if len(np.unique(labels)) == len(labels):
        return np.empty(0, dtype=np.float32)
    first = np.searchsorted(labels, pairs[:, 0])
    last = np.searchsorted(labels, pairs[:, 0], side="right") - 1
    return np.asarray((bank[first] * bank[last]).sum(axis=1))


def _check_clusters(config: Config, kind: str, labels: Labels) -> None:
    for m, y in labels.items():
        if y.max(initial=OUTLIER) == OUTLIER:
            settings = config.clustering
            eps = settings.joint_eps or settings.eps if kind == JOINT else settings.eps
            raise ValueError(
                f"no {kind} cluster with {m} images ({len(y)} images, subset={settings.subset}, "
                f"eps={eps}, k1={settings.k1}, min_samples={settings.min_samples}): "
                "raise bmil.clustering.eps or lower min_samples there, with k1 at most the images "
                "of one identity; docs/troubleshooting.md"
            )


def _warnings(config: Config, stage: str, steps: Mapping[str, Labels]) -> tuple[str, ...]:
    warnings = []
    for kind, of_kind in steps.items():
        for m, y in of_kind.items():
            num, wanted = len(np.setdiff1d(y, [OUTLIER])), getattr(config, stage).clusters_of(m)
            if num < wanted:
                warnings.append(
                    f"only {num} {kind} clusters with {m} images for clusters_per_batch={wanted}: "
                    "every batch repeats them"
                )
    return tuple(warnings)


def _plan(
    config: Config, context: BetweenEpochs, kind: str, labels: Labels
) -> dict[Modality, np.ndarray]:
    """Global batches (batches, P K) of one kind of label."""
    settings, cameras = getattr(config, context.stage), context.cameras
    if config.sampling.camera_aware and cameras is None:
        raise ValueError("bmil.sampling.camera_aware needs a camera number for every image")
    plans = {}
    for m in INPUTS:
        shape: dict[str, Any] = {
            "num_clusters": settings.clusters_of(m),
            "num_instances": settings.instances,
            "num_batches": settings.batches_per_epoch,
            "seed": seed_of(context.seed, context.stage, kind, m),
            "epoch": context.epoch,
        }
        if config.sampling.camera_aware and cameras is not None:
            plans[m] = camera_plan(labels[m], cameras[m], **shape)
        else:
            plans[m] = sampling.pk_plan(labels[m], **shape)
    return plans


def _in_turn(plans: list[np.ndarray]) -> np.ndarray:
    """(S batches, B) of S plans (batches, B), one batch of each in turn."""
    return np.stack(plans, axis=1).reshape(-1, plans[0].shape[1])
