"""What decides between the epochs, in a thread of this process: `actor` without Ray."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipelines.errors import own_words_for_users
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.epoch_maker import EpochMaker
from pipelines.training.memory_bank import MemoryBank
from reid_core.knn.products import Features
from reid_core.types import Modality


class BankInThread:
    """A bank as the loop asks it: features are handed over at once and clustered by a thread.

    Args:
        bank: the plain class.
        pool: one thread.
    """

    def __init__(self, bank: EpochMaker, pool: ThreadPoolExecutor) -> None:
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
