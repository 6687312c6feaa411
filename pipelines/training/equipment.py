"""What one worker has for its whole run, and where in the run it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipelines.data.corrupt_images import CorruptImages
from pipelines.distributed import collectives
from pipelines.training.draws import seed_torch
from pipelines.training.embedding import Embedding
from pipelines.training.epoch import EpochStart
from pipelines.training.job import EpochSource, Job
from pipelines.training.progress import Place
from pipelines.training.within_epoch import Notice, Pauses
from reid_core.types import Batch, Modality

OpenBatches = Callable[[EpochStart], Iterator[dict[Modality, Batch]]]
"""Opens this worker's batches of the epoch that was just begun."""


@dataclass
class Equipment:
    """What a worker has for the whole run.

    Attributes:
        job: the work.
        bank: what decides between epochs.
        batches: see `OpenBatches`.
        embedding: its part in embedding.
        corrupt_images: that it met.
        pauses: when it keeps what an epoch has come to, or stops.
        token: which incarnation of the bank it was told.
        place: where it is.
    """

    job: Job
    bank: EpochSource
    batches: OpenBatches
    embedding: Embedding
    corrupt_images: CorruptImages
    pauses: Pauses
    token: int = 0
    place: Place = field(default_factory=Place)

    @classmethod
    def of(
        cls,
        job: Job,
        bank: EpochSource,
        batches: OpenBatches,
        notice: Notice,
        embedding: Embedding,
    ) -> Equipment:
        """What a worker of the job needs beside what it is given; arguments as attributes."""
        corrupt_images = CorruptImages(
            job.train, max_share=job.config.data.max_unreadable, identities=job.identities
        )
        pauses = Pauses(notice, job.config.trainer.checkpoint_every)
        return cls(job, bank, batches, embedding, corrupt_images, pauses)

    def open_bank(self) -> None:
        """All workers together: a new incarnation of the bank."""
        first = collectives.rank() == 0
        self.token = collectives.broadcast_int(self.bank.open() if first else 0)

    def begin_epoch(self, stage: str, epoch: int) -> None:
        """An epoch begins here."""
        self._go_to(Place(stage, epoch))
        self.pauses.begin()

    def skip(self, steps: int) -> None:
        """The epoch's first steps were taken before."""
        self.place = self.place._replace(step=steps)

    def begin_step(self) -> None:
        """The next step of the epoch begins here."""
        self._go_to(self.place._replace(step=self.place.step + 1))

    def _go_to(self, place: Place) -> None:
        """Every step of every worker draws from its own stream: no random state is to be kept.

        Workers that are threads draw nothing in a step (`pipelines.data.sound_settings` sees to
        that). They share torch's random state, from which another one may be drawing first values
        meanwhile.
        """
        self.place = place
        if collectives.are_threads():
            return
        config = self.job.config
        number = self.job.method.stages(config.settings).index(place.stage)
        seed_torch(config.seed, number, place.epoch, collectives.rank(), place.step)
