"""The one place that sees every feature: labels, banks, matches, swaps and plans between epochs.

`MemoryBank` is a plain class; `pipelines.train` wraps it as a Ray actor. Workers hand in features,
shard by shard; as soon as a modality is complete it is clustered, while the other one is still
being embedded. `begin_epoch` waits for both, makes the epoch and returns the same answer to every
worker. All of it is a function of (features, seed, epoch), so a repeated call repeats its answer.

A bank that was restarted is empty. Every call therefore carries the token of the incarnation that
it was made for, and a mismatch fails the worker group, which reloads one checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.config import RunConfig
from pipelines.data import Plan
from pipelines.errors import BarrierTimeoutError, StaleBankError
from reid_core import metrics, sampling
from reid_core.methods import cclnet
from reid_core.types import OUTLIER, Modality

Key = tuple[str, int]


@dataclass(frozen=True)
class EpochStart:
    """What every worker receives before the first step.

    Attributes:
        labels: per modality (n,) int64 labels of this epoch.
        banks: per modality (C, D) float32.
        pairs: (M, 2) int64 matched clusters.
        num_batches: steps of the epoch.
        batch_sizes: rows of a global batch, per modality.
        metrics: counts and diagnostics for the log.
        seconds: per phase: cluster (per modality, on the bank's clock), match, plan.
    """

    labels: dict[Modality, np.ndarray]
    banks: dict[Modality, np.ndarray]
    pairs: np.ndarray
    num_batches: int
    batch_sizes: dict[Modality, int]
    metrics: dict[str, object]
    seconds: dict[str, float]


@dataclass
class _Pending:
    """Features of one epoch while they arrive."""

    shards: dict[Modality, dict[int, np.ndarray]] = field(
        default_factory=lambda: {m: {} for m in cclnet.MODALITIES}
    )
    features: dict[Modality, np.ndarray] = field(default_factory=dict)
    labels: dict[Modality, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class MemoryBank:
    """Clusters, matches and plans for a group of workers.

    Args:
        config: the run's configuration.
        pids: per modality (n,) person ids, -1 where unknown. Read for diagnostics, and as labels
            where the configuration asks for given identities; never handed to workers.
    """

    def __init__(self, config: RunConfig, pids: Mapping[Modality, np.ndarray]) -> None:
        self._config = config
        self._method = config.cclnet
        self._pids = dict(pids)
        self._token = 0
        self._changed = threading.Condition()
        self._key: Key | None = None
        self._pending = _Pending()
        self._start: EpochStart | None = None
        self._plan: Plan | None = None

    def open(self) -> int:
        """Forget everything and start a new incarnation; returns its token."""
        with self._changed:
            self._token = time.time_ns()
            self._key = None
            return self._token

    def add_features(
        self, token: int, key: Key, modality: Modality, features: np.ndarray, rank: int, world: int
    ) -> None:
        """Take one worker's share of a modality; cluster it when it is the last share.

        Args:
            token: from `open`.
            key: (stage, epoch).
            modality: of the features.
            features: (n / world, D) unit rows, the rank-th contiguous share.
            rank, world: whose share of how many.
        """
        with self._changed:
            self._check(token)
            self._turn_to(key)
            pending = self._pending
            shards = pending.shards[modality]
            shards[rank] = features
            if len(shards) < world or modality in pending.features:
                return
            whole = np.concatenate([shards[r] for r in range(world)])
            pending.features[modality] = whole
        began = time.perf_counter()
        labels = self._labels(modality, whole)
        with self._changed:
            pending.labels[modality] = labels
            pending.seconds[f"cluster_{modality}"] = time.perf_counter() - began
            self._changed.notify_all()

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """Wait for all features of the epoch, then return its banks, pairs and size.

        Raises:
            BarrierTimeoutError: a worker's features did not arrive.
            ValueError: a modality without clusters.
        """
        with self._changed:
            self._check(token)
            self._turn_to(key)
            pending = self._pending
            timeout_s = self._config.trainer.barrier_timeout_s
            ready = self._changed.wait_for(
                lambda: self._token != token or len(pending.labels) == len(cclnet.MODALITIES),
                timeout=timeout_s,
            )
            self._check(token)
            if not ready:
                arrived = [set(shards) for shards in pending.shards.values()]
                missing = sorted(set(range(world)) - arrived[0].intersection(*arrived[1:]))
                raise BarrierTimeoutError(missing, timeout_s)
            if self._start is None:
                self._start, self._plan = self._make(key, pending)
            return self._start

    def current_plan(self) -> Plan | None:
        """The plan of the epoch that was begun last; None before the first one."""
        with self._changed:
            return self._plan

    def _check(self, token: int) -> None:
        if token != self._token:
            raise StaleBankError(token, self._token)

    def _turn_to(self, key: Key) -> None:
        if key != self._key:
            self._key, self._pending, self._start, self._plan = key, _Pending(), None, None

    def _labels(self, modality: Modality, features: np.ndarray) -> np.ndarray:
        if self._method.labels == "clusters":
            return cclnet.cluster(self._method, features)
        everyone = np.unique(np.concatenate(list(self._pids.values())))
        if everyone[0] == OUTLIER:
            raise ValueError("cclnet.labels=identities needs a person id for every training image")
        return np.searchsorted(everyone, self._pids[modality]).astype(np.int64)

    def _make(self, key: Key, pending: _Pending) -> tuple[EpochStart, Plan]:
        stage, epoch = key
        began = time.perf_counter()
        seed = self._config.seed
        begun = cclnet.begin_epoch(
            self._method,
            stage,
            features=pending.features,
            labels={m: pending.labels[m] for m in cclnet.MODALITIES},
            epoch=epoch,
            seed=seed,
        )
        matched = time.perf_counter()
        plan = Plan(
            rows=begun.plan,
            labels={m: begun.labels[m][rows] for m, rows in begun.plan.items()},
            seeds={
                m: sampling.augmentation_seeds(
                    rows.shape, seed=cclnet.stream(seed, stage, m), epoch=epoch
                )
                for m, rows in begun.plan.items()
            },
        )
        seconds = {
            **pending.seconds,
            "match": matched - began,
            "plan": time.perf_counter() - matched,
        }
        start = EpochStart(
            labels=begun.labels,
            banks={m: bank.numpy() for m, bank in begun.banks.items()},
            pairs=begun.pairs,
            num_batches=plan.num_batches,
            batch_sizes={m: rows.shape[1] for m, rows in plan.rows.items()},
            metrics={**self._diagnose(begun), "warnings": self._warnings(stage, begun)},
            seconds=seconds,
        )
        return start, plan

    def _warnings(self, stage: str, begun: cclnet.Epoch) -> list[str]:
        wanted = getattr(self._method, stage).clusters_per_batch
        return [
            f"only {len(begun.banks[m])} {m} clusters for clusters_per_batch={wanted}: "
            "every batch repeats them"
            for m in cclnet.MODALITIES
            if len(begun.banks[m]) < wanted
        ]

    def _diagnose(self, begun: cclnet.Epoch) -> dict[str, object]:
        labels, pids = begun.labels, self._pids
        found: dict[str, object] = {
            "rows": {str(m): len(y) for m, y in labels.items()},
            "clusters": {str(m): int(y.max()) + 1 for m, y in labels.items()},
            "outliers": {str(m): int((y == OUTLIER).sum()) for m, y in labels.items()},
            "pairs": len(begun.pairs),
        }
        if len(begun.pairs):
            found["pair_similarity"] = {
                "mean": float(begun.similarity.mean()),
                "min": float(begun.similarity.min()),
            }
        if all((pids[m] != OUTLIER).any() for m in labels):
            visible, infrared = Modality.VISIBLE, Modality.INFRARED
            accuracy = metrics.matching_accuracy(
                begun.pairs, labels[visible], pids[visible], labels[infrared], pids[infrared]
            )
            agreement = {m: metrics.clustering_agreement(labels[m], pids[m]) for m in labels}
            found["truth"] = {
                **{str(m): {"ari": a.ari, "purity": a.purity} for m, a in agreement.items()},
                "matching_accuracy": None if np.isnan(accuracy) else accuracy,
            }
        return found
