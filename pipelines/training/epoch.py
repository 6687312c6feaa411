"""From labels to an epoch: the method decides, the plan is drawn, the log gets its numbers.

A pure function of (features, labels, seed, epoch), used by whatever sits between the epochs: the
memory bank where a method clusters, the planner where it is given identities.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from pipelines.config.run import RunConfig
from pipelines.data.plan import Plan
from pipelines.runs.records import EpochLine
from reid_core import agreement, sampling
from reid_core.method import BetweenEpochs, EpochPlan, Labels
from reid_core.methods import METHODS
from reid_core.stage import Epoch
from reid_core.types import OUTLIER, Modality

Key = tuple[str, int]
_MODALITIES = tuple(Modality)


@dataclass(frozen=True)
class EpochStart:
    """What every worker receives before the first step.

    Attributes:
        epoch: labels, prototypes and pairs.
        plan: all global batches, of which every worker streams its slices.
        metrics: counts and diagnostics for the log.
        seconds: per phase: cluster (per modality, on the bank's clock), match, plan.
    """

    epoch: Epoch
    plan: Plan
    metrics: EpochLine
    seconds: dict[str, float]


def make_epoch(
    config: RunConfig,
    context: BetweenEpochs,
    labels: Labels,
    *,
    pids: Mapping[Modality, np.ndarray] | None,
) -> EpochStart:
    """One epoch's start.

    Args:
        config: the run's configuration.
        context: what is known.
        labels: per modality (n,) from clustering, or given; empty where the method makes its own.
        pids: per modality (n,) pids, -1 where unknown, for diagnostics alone; None where
            the labels are given and there is nothing to diagnose.

    Raises:
        ValueError: no epoch can be made of these labels; names the remedy.
    """
    method, settings = METHODS[config.method], config.settings
    began = time.perf_counter()
    decided = method.begin_epoch(settings, context, labels)
    matched = time.perf_counter()
    augmentations = method.augmentations(settings, config.augmentation.options())
    views = {m: len(of_each) for m, of_each in augmentations.items()}
    stage = method.stages(settings).index(context.stage)
    stream = (config.seed * 16 + stage) * len(_MODALITIES)
    plan = Plan(
        rows=dict(decided.rows),
        labels=decided.of_places(),
        seeds={
            m: sampling.augmentation_seeds(
                (len(rows), views[m] * rows.shape[1]),
                seed=stream + _MODALITIES.index(m),
                epoch=context.epoch,
            )
            for m, rows in decided.rows.items()
        },
        captions=decided.captions,
        kinds=decided.kinds,
    )
    return EpochStart(
        epoch=decided.for_workers(plan.repeats(decided.labels.get(Modality.TEXT))),
        plan=plan,
        metrics={
            **({} if pids is None else diagnose(decided, pids)),
            "warnings": list(decided.warnings),
        },
        seconds={"match": matched - began, "plan": time.perf_counter() - matched},
    )


def diagnose(epoch: EpochPlan, pids: Mapping[Modality, np.ndarray]) -> EpochLine:
    """Counts of an epoch, and where pids are known, how right its clusters are."""
    labels = epoch.labels
    result: EpochLine = {
        "rows": {str(m): len(y) for m, y in labels.items()},
        "clusters": {str(m): int(y.max(initial=OUTLIER)) + 1 for m, y in labels.items()},
        "outliers": {str(m): int((y == OUTLIER).sum()) for m, y in labels.items()},
        "pairs": len(epoch.pairs),
        # tells whether two runs gave every image the same label, without keeping the labels
        "labels": {str(m): hashlib.sha256(y.tobytes()).hexdigest()[:12] for m, y in labels.items()},
    }
    result |= cast(EpochLine, epoch.counts)  # of the method's own, under names of its own
    if len(epoch.pairs) == len(np.unique(epoch.pairs[:, 0])) > 0:  # one to one
        num_all = sum(len(np.setdiff1d(y, [OUTLIER])) for y in labels.values())
        result["clusters_of_both"] = len(epoch.pairs) / (num_all - len(epoch.pairs))
    if len(epoch.similarity):
        result["pair_similarity"] = {
            "mean": float(epoch.similarity.mean()),
            "min": float(epoch.similarity.min()),
        }
    if any((pids[m] == OUTLIER).all() for m in labels):
        return result
    agreements = {m: agreement.clustering_agreement(labels[m], pids[m]) for m in labels}
    truth: dict[str, Mapping[str, float | None] | float | None] = {
        str(m): {"ari": a.ari, "purity": a.purity} for m, a in agreements.items()
    }
    if len(epoch.pairs):
        one, other = labels
        accuracy = agreement.matching_accuracy(
            epoch.pairs, labels[one], pids[one], labels[other], pids[other]
        )
        truth["matching_accuracy"] = None if np.isnan(accuracy) else accuracy
        drawn = agreement.association_agreement(
            epoch.pairs, labels[one], pids[one], labels[other], pids[other]
        )
        truth["association"] = {
            name: None if np.isnan(share) else share for name, share in vars(drawn).items()
        }
    return {**result, "truth": truth}


def stability(before: Labels, labels: Labels) -> EpochLine:
    """How much of a stage's last clustering is in this one, for the log; nothing to the first."""
    if not before:
        return {}
    return {
        "stability": {
            str(m): agreement.clustering_stability(before[m], y) for m, y in labels.items()
        }
    }
