"""What sits between the epochs of a method that is given identities: plans, and nothing else."""

from __future__ import annotations

import threading
import time

from pipelines.config.run import RunConfig
from pipelines.errors import StaleBankError
from pipelines.training.epoch import EpochStart, Key, make_epoch
from reid_core.method import BetweenEpochs, Labels


class Planner:
    """Makes the plans of a supervised method; asked like a `MemoryBank` without features.

    Args:
        config: the run's configuration.
        identities: per modality (n,) int64 classes from 0.
    """

    def __init__(self, config: RunConfig, identities: Labels) -> None:
        self._config, self._identities = config, identities
        self._token = 0
        self._key: Key | None = None
        self._lock = threading.Lock()

    def open(self) -> int:
        """Start a new incarnation; returns its token."""
        with self._lock:
            self._token, self._key = time.time_ns(), None
            return self._token

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """The epoch's plan and labels; a repeated call repeats its answer."""
        with self._lock:
            if token != self._token:
                raise StaleBankError(token, self._token)
            if key != self._key:
                stage, epoch = key
                context = BetweenEpochs(
                    stage, epoch, self._config.seed, identities=self._identities
                )
                self._start = make_epoch(self._config, context, self._identities, pids=None)
                self._key = key
            return self._start
