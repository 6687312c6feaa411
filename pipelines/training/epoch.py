"""From labels to an epoch: the method decides, the plan is drawn, the log gets its numbers.

A pure function of (features, labels, seed, epoch), used by whatever sits between the epochs: the
memory bank where a method clusters, the planner where it is given identities.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipelines.config import RunConfig
from pipelines.data.plan import Plan
from reid_core import agreement, sampling
from reid_core.knn.neighbours import Search
from reid_core.knn.search import nearest
from reid_core.method import Epoch
from reid_core.methods import METHODS
from reid_core.types import OUTLIER, Modality

Key = tuple[str, int]
_MODALITIES = tuple(Modality)


@dataclass(frozen=True)
class EpochStart:
    """What every worker receives before the first step.

    Attributes:
        epoch: labels, banks and pairs.
        plan: all global batches, of which every worker streams its slices.
        metrics: counts and diagnostics for the log.
        seconds: per phase: cluster (per modality, on the bank's clock), match, plan.
    """

    epoch: Epoch
    plan: Plan
    metrics: dict[str, object]
    seconds: dict[str, float]


def make_epoch(
    config: RunConfig,
    key: Key,
    *,
    features: Mapping[Modality, np.ndarray],
    labels: Mapping[Modality, np.ndarray],
    owners: np.ndarray | None,
    pids: Mapping[Modality, np.ndarray] | None,
    cameras: Mapping[Modality, np.ndarray] | None = None,
    search: Search = nearest,
) -> EpochStart:
    """One epoch's start.

    Args:
        config: the run's configuration.
        key: (stage, epoch).
        features: per modality (n, D) unit rows; empty where the method does not cluster.
        labels: per modality (n,) from clustering, or given.
        owners: (n captions,) visible row of each caption, or None.
        pids: per modality (n,) person ids, -1 where unknown, for diagnostics alone; None where
            the labels are given and there is nothing to diagnose.
        cameras: per modality (n,) cameras; None where they are not known.
        search: finds nearest rows, in this process or on many machines.

    Raises:
        ValueError: no epoch can be made of these labels; names the remedy.
    """
    stage, number = key
    method, settings, seed = METHODS[config.method], config.settings, config.seed
    began = time.perf_counter()
    epoch: Epoch = method.begin_epoch(
        settings,
        stage,
        features=features,
        labels=labels,
        owners=owners,
        epoch=number,
        seed=seed,
        search=search,
        cameras=cameras,
    )
    matched = time.perf_counter()
    augmentations = method.augmentations(settings, config.augmentation.options())
    views = {m: len(of_each) for m, of_each in augmentations.items()}
    stream = (seed * 16 + method.stages(settings).index(stage)) * len(_MODALITIES)
    plan = Plan(
        rows=epoch.plan,
        labels=epoch.place_labels or {m: epoch.labels[m][rows] for m, rows in epoch.plan.items()},
        seeds={
            m: sampling.augmentation_seeds(
                (len(rows), views[m] * rows.shape[1]),
                seed=stream + _MODALITIES.index(m),
                epoch=number,
            )
            for m, rows in epoch.plan.items()
        },
        captions=epoch.captions,
    )
    return EpochStart(
        epoch=replace(
            epoch,
            plan={},
            place_labels={},
            captions=None,
            repeats=plan.repeats(epoch.labels.get(Modality.TEXT)),
        ),
        plan=plan,
        metrics={
            **({} if pids is None else diagnose(epoch, pids)),
            "warnings": list(epoch.warnings),
        },
        seconds={"match": matched - began, "plan": time.perf_counter() - matched},
    )


def diagnose(epoch: Epoch, pids: Mapping[Modality, np.ndarray]) -> dict[str, object]:
    """Counts of an epoch, and where person ids are known, how right its clusters are."""
    labels = epoch.labels
    found: dict[str, object] = {
        "rows": {str(m): len(y) for m, y in labels.items()},
        "clusters": {str(m): int(y.max(initial=OUTLIER)) + 1 for m, y in labels.items()},
        "outliers": {str(m): int((y == OUTLIER).sum()) for m, y in labels.items()},
        "pairs": len(epoch.pairs),
        # tells whether two runs gave every image the same label, without keeping the labels
        "labels": {str(m): hashlib.sha256(y.tobytes()).hexdigest()[:12] for m, y in labels.items()},
        **epoch.counts,
    }
    if len(epoch.pairs):
        found["pair_similarity"] = {
            "mean": float(epoch.similarity.mean()),
            "min": float(epoch.similarity.min()),
        }
    if any((pids[m] == OUTLIER).all() for m in labels):
        return found
    agreements = {m: agreement.clustering_agreement(labels[m], pids[m]) for m in labels}
    truth: dict[str, object] = {
        str(m): {"ari": a.ari, "purity": a.purity} for m, a in agreements.items()
    }
    if len(epoch.pairs):
        one, other = labels
        accuracy = agreement.matching_accuracy(
            epoch.pairs, labels[one], pids[one], labels[other], pids[other]
        )
        truth["matching_accuracy"] = None if np.isnan(accuracy) else accuracy
    return {**found, "truth": truth}
