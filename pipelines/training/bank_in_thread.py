"""What decides between the epochs, in a thread of this process: `actor` without Ray."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from pipelines.data.prepare import Prepared
from pipelines.errors import own_words_for_users
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.job import Job
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.planner import Planner
from reid_core.knn.products import Features
from reid_core.types import Modality

_CPU = torch.device("cpu")


def open_bank(job: Job, prepared: Prepared, device: torch.device = _CPU) -> MemoryBank | Planner:
    """What decides between the epochs, in this process; features are held on `device`."""
    if not job.needs_memory:
        assert job.identities is not None
        return Planner(job.config, job.identities)
    inputs = job.method.inputs
    return MemoryBank(
        job.config,
        prepared.pids(inputs),
        identities=job.identities,
        owners=job.train.owners,
        cameras=prepared.cameras(inputs),
        device=device,
    )


class BankInThread:
    """A bank as the loop asks it: features are handed over at once and clustered by a thread.

    Args:
        bank: the plain class.
        pool: one thread.
    """

    def __init__(self, bank: MemoryBank | Planner, pool: ThreadPoolExecutor) -> None:
        self._bank, self._pool = bank, pool

    def open(self) -> int:
        """See `MemoryBank.open`."""
        return self._bank.open()

    def add_features(
        self, token: int, key: Key, modality: Modality, features: Features, rank: int, world: int
    ) -> None:
        """See `MemoryBank.add_features`; what goes wrong there is raised by `begin_epoch`."""
        assert isinstance(self._bank, MemoryBank)  # a planner is given no features
        add, handed = self._bank.add_features, [features]  # taken out, so that nobody keeps them
        self._pool.submit(lambda: add(token, key, modality, handed.pop(), rank, world))

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """See `MemoryBank.begin_epoch`.

        Raises:
            UserError: what the bank was given makes no epoch.
        """
        with own_words_for_users():
            return self._bank.begin_epoch(token, key, world)
