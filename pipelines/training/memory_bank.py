"""The one place that sees every feature: between epochs it clusters, matches, swaps and plans.

`MemoryBank` is a plain class; the driver wraps it as a Ray actor. Workers hand in features,
piece by piece, and it holds each of them once; as soon as a modality is complete it is clustered,
while the other one is still being embedded. `begin_epoch` waits for both, makes the epoch and
returns the same answer to every worker. All of it is a function of (features, seed, epoch), so a
repeated call repeats its answer.

A bank that was restarted is empty. Every call therefore carries the token of the incarnation that
it was made for, and a mismatch fails the worker group, which reloads one checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pipelines.config.run import RunConfig
from pipelines.errors import BarrierTimeoutError, StaleBankError
from pipelines.training.epoch import EpochStart, Key, make_epoch
from pipelines.training.incoming import Incoming
from reid_core.knn.approximate import GraphSearch
from reid_core.knn.neighbors import Search
from reid_core.knn.products import Features
from reid_core.knn.search import nearest
from reid_core.method import BetweenEpochs, Labels
from reid_core.methods import METHODS
from reid_core.types import Modality

_CPU = torch.device("cpu")


@dataclass
class _Pending:
    """What is known of one epoch before it begins.

    Attributes:
        incoming: its features while they arrive, and until it is made.
        labels: per clustered modality; none where the method makes them later.
        ready: modalities that are done with.
        seconds: that clustering took.
        failure: why a modality could not be clustered.
    """

    incoming: Incoming
    labels: dict[Modality, np.ndarray] = field(default_factory=dict)
    ready: set[Modality] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None


class MemoryBank:
    """Clusters, matches and plans for a group of workers.

    Args:
        config: the run's configuration.
        pids: per modality (n,) pids, -1 where unknown. Read for diagnostics only, and never
            handed to workers.
        identities: per modality (n,) given classes, which replace the clustering; None without.
        owners: (n captions,) visible row of each caption, or None.
        cameras: per modality (n,) camera numbers; None where one is not known.
        search: finds nearest neighbors, in this process or on many machines; not asked where
            `trainer.search` is "approximate".
        device: where features are held, and read by what the method computes of them.
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
        device: torch.device = _CPU,
    ) -> None:
        self._config, self._method = config, METHODS[config.method]
        self._pids, self._identities = dict(pids), identities
        self._device = device
        self._graphs = GraphSearch() if config.trainer.search == "approximate" else None
        # what every epoch's context has in common
        self._known = BetweenEpochs(
            "",
            -1,
            config.seed,
            search=self._graphs or search,
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
        self,
        token: int,
        key: Key,
        modality: Modality,
        features: Features,
        rank: int,
        world: int,
        start: int = 0,
    ) -> None:
        """Take some rows of a modality, once; cluster it when they are its last.

        Args:
            token: from `open`.
            key: (stage, epoch).
            modality: of the features.
            features: (any, D) unit rows of the rank-th contiguous share, or all of it.
            rank, world: whose share of how many.
            start: place of the first of these rows within the share.
        """
        with self._changed:
            self._check(token)
            self._turn_to(key)
            pending = self._pending
        try:
            with self._changed:
                if pending.incoming.has(modality, rank, start):
                    return  # sent again
                pending.incoming.make_room(features)
            pending.incoming.place(modality, features, rank, world, start)
            with self._changed:
                is_last = pending.incoming.count(modality, len(features), rank, world, start)
                self._changed.notify_all()
            del features  # clustering reads the copy
            if not is_last:
                return
            began = time.perf_counter()
            self._label(key, modality, pending)
        except Exception as error:  # nobody waits for this call: begin_epoch raises it
            with self._changed:
                pending.failure = error
                self._changed.notify_all()
            return
        with self._changed:
            pending.seconds[f"cluster_{modality}"] = time.perf_counter() - began
            pending.ready.add(modality)
            self._changed.notify_all()

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """Wait for all features of the epoch, then return its prototypes, pairs and plan.

        Raises:
            BarrierTimeoutError: a worker's features did not arrive.
            ValueError: a modality without clusters.
            Exception: whatever went wrong while features were taken or clustered.
        """
        with self._changed:
            self._check(token)
            self._turn_to(key)
            pending = self._pending
            timeout_s = self._config.trainer.barrier_timeout_s
            everyone = set(range(world))
            self._changed.wait_for(
                lambda: (
                    self._token != token
                    or pending.failure is not None
                    or pending.incoming.everywhere(world) == everyone
                ),
                timeout=timeout_s,
            )
            self._check(token)
            if pending.failure is not None:
                raise pending.failure
            if missing := sorted(everyone - pending.incoming.everywhere(world)):
                raise BarrierTimeoutError(missing, timeout_s)
            # Clustering takes as long as it takes.
            self._changed.wait_for(lambda: self._token != token or self._is_clustered(pending))
            self._check(token)
            if pending.failure is not None:
                raise pending.failure
            if self._start is None:
                self._start = self._make(key, pending)
                pending.incoming.release()
            return self._start

    def _check(self, token: int) -> None:
        if token != self._token:
            raise StaleBankError(token, self._token)

    def _nothing(self) -> _Pending:
        sizes = {m: len(self._pids[m]) for m in self._method.inputs}
        return _Pending(Incoming(sizes, self._device))

    def _is_clustered(self, pending: _Pending) -> bool:
        """Whether every modality is clustered, or one of them could not be."""
        return pending.failure is not None or len(pending.ready) == len(self._method.inputs)

    def _turn_to(self, key: Key) -> None:
        if key != self._key:
            self._key, self._pending = key, self._nothing()
            self._start = None

    def _context(self, key: Key, features: Mapping[Modality, Features]) -> BetweenEpochs:
        stage, epoch = key
        return replace(self._known, stage=stage, epoch=epoch, features=features)

    def _label(self, key: Key, modality: Modality, pending: _Pending) -> None:
        """Given classes, or clusters where the method wants them of one modality alone."""
        if self._identities is not None and modality in self._identities:
            pending.labels[modality] = self._identities[modality]
        elif self._method.cluster is not None:
            context = self._context(key, {modality: pending.incoming.rows(modality)})
            pending.labels[modality] = self._method.cluster(
                self._config.settings, modality, context
            )

    def _make(self, key: Key, pending: _Pending) -> EpochStart:
        # in the order of the method, not in that in which they were finished
        inputs = self._method.inputs
        start = make_epoch(
            self._config,
            self._context(key, {m: pending.incoming.rows(m) for m in inputs}),
            {m: pending.labels[m] for m in inputs if m in pending.labels},
            pids=self._pids,
        )
        metrics = start.metrics
        if self._graphs is not None and self._graphs.recalls:
            metrics = {**metrics, "search_recall": min(self._graphs.recalls)}
            self._graphs.recalls.clear()
        seconds = {**pending.seconds, **start.seconds}
        return replace(start, metrics=metrics, seconds=seconds)
