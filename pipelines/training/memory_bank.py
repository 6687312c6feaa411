"""The one place that sees every feature: between epochs it clusters, matches, swaps and plans.

`MemoryBank` is a plain class; the driver wraps it as a Ray actor. Workers hand in features,
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
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.config import RunConfig
from pipelines.errors import BarrierTimeoutError, StaleBankError
from pipelines.training.epoch import EpochStart, Key, make_epoch
from reid_core.knn.neighbours import Search
from reid_core.knn.search import nearest
from reid_core.method import BetweenEpochs, Labels
from reid_core.methods import METHODS
from reid_core.types import Modality


@dataclass
class _Pending:
    """Features of one epoch while they arrive.

    Attributes:
        shards: per modality the workers' shares, until it is complete.
        arrived: ranks that handed theirs in.
        features, labels: per complete modality; no labels where the method makes them later.
        ready: modalities that have both.
        seconds: that clustering took.
        failure: why a modality could not be clustered.
    """

    shards: dict[Modality, dict[int, np.ndarray]]
    arrived: dict[Modality, set[int]]
    features: dict[Modality, np.ndarray] = field(default_factory=dict)
    labels: dict[Modality, np.ndarray] = field(default_factory=dict)
    ready: set[Modality] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None

    def everywhere(self) -> set[int]:
        """Ranks that handed in their share of every modality."""
        return set.intersection(*self.arrived.values())

    def complete(self) -> bool:
        """Whether every modality is clustered, or one of them could not be."""
        return self.failure is not None or len(self.ready) == len(self.shards)


class MemoryBank:
    """Clusters, matches and plans for a group of workers.

    Args:
        config: the run's configuration.
        pids: per modality (n,) person ids, -1 where unknown. Read for diagnostics only, and never
            handed to workers.
        identities: per modality (n,) given classes, which replace the clustering; None without.
        owners: (n captions,) visible row of each caption, or None.
        cameras: per modality (n,) camera numbers; None where one is not known.
        search: finds nearest neighbours, in this process or on many machines.
    """

    def __init__(
        self,
        config: RunConfig,
        pids: Mapping[Modality, np.ndarray],
        *,
        identities: Labels | None = None,
        owners: np.ndarray | None = None,
        cameras: Labels | None = None,
        search: Search = nearest,
    ) -> None:
        self._config, self._method = config, METHODS[config.method]
        self._pids, self._identities = dict(pids), identities
        # what every epoch's context has in common
        self._known = BetweenEpochs(
            "",
            -1,
            config.seed,
            search=search,
            identities=identities,
            owners=owners,
            cameras=cameras,
        )
        self._token = 0
        self._changed = threading.Condition()
        self._key: Key | None = None
        self._pending = self._nothing()
        self._start: EpochStart | None = None

    def open(self) -> int:
        """Forget everything and start a new incarnation; returns its token."""
        with self._changed:
            self._token = time.time_ns()
            self._key = None
            self._changed.notify_all()  # whoever waits in the name of an earlier group gives up
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
            pending.arrived[modality].add(rank)
            if len(shards) < world:
                return
            # What the workers sent is given back as soon as it is copied.
            pending.shards[modality] = {}
            self._changed.notify_all()
        began = time.perf_counter()
        try:
            pending.features[modality] = np.concatenate([shards.pop(r) for r in range(world)])
            self._label(key, modality, pending)
        except Exception as error:  # nobody waits for this call: begin_epoch raises it
            pending.failure = error
        with self._changed:
            pending.seconds[f"cluster_{modality}"] = time.perf_counter() - began
            pending.ready.add(modality)
            self._changed.notify_all()

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """Wait for all features of the epoch, then return its prototypes, pairs and plan.

        Raises:
            BarrierTimeoutError: a worker's features did not arrive.
            ValueError: a modality without clusters.
        """
        with self._changed:
            self._check(token)
            self._turn_to(key)
            pending = self._pending
            timeout_s = self._config.trainer.barrier_timeout_s
            everyone = set(range(world))
            self._changed.wait_for(
                lambda: self._token != token or pending.everywhere() == everyone, timeout=timeout_s
            )
            self._check(token)
            if missing := sorted(everyone - pending.everywhere()):
                raise BarrierTimeoutError(missing, timeout_s)
            # Clustering takes as long as it takes.
            self._changed.wait_for(lambda: self._token != token or pending.complete())
            self._check(token)
            if pending.failure is not None:
                raise pending.failure
            if self._start is None:
                self._start = self._make(key, pending)
                pending.features.clear()
            return self._start

    def _check(self, token: int) -> None:
        if token != self._token:
            raise StaleBankError(token, self._token)

    def _nothing(self) -> _Pending:
        inputs = self._method.inputs
        return _Pending({m: {} for m in inputs}, {m: set() for m in inputs})

    def _turn_to(self, key: Key) -> None:
        if key != self._key:
            self._key, self._pending = key, self._nothing()
            self._start = None

    def _context(self, key: Key, features: Mapping[Modality, np.ndarray]) -> BetweenEpochs:
        stage, epoch = key
        return replace(self._known, stage=stage, epoch=epoch, features=features)

    def _label(self, key: Key, modality: Modality, pending: _Pending) -> None:
        """Given classes, or clusters where the method wants them of one modality alone."""
        if self._identities is not None and modality in self._identities:
            pending.labels[modality] = self._identities[modality]
        elif self._method.cluster is not None:
            context = self._context(key, {modality: pending.features[modality]})
            pending.labels[modality] = self._method.cluster(
                self._config.settings, modality, context
            )

    def _make(self, key: Key, pending: _Pending) -> EpochStart:
        # in the order of the method, not in that in which they were finished
        inputs = self._method.inputs
        start = make_epoch(
            self._config,
            self._context(key, {m: pending.features[m] for m in inputs}),
            {m: pending.labels[m] for m in inputs if m in pending.labels},
            pids=self._pids,
        )
        return replace(start, seconds={**pending.seconds, **start.seconds})
