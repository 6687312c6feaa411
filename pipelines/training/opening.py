"""Opening: the pre-trained model, and stages on it, ready for their device and their workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.distributed.precision import set_tf32
from pipelines.runs.learned import Learned
from pipelines.runs.records import State
from pipelines.training import step
from pipelines.training.draws import seed_torch
from pipelines.training.job import Job
from reid_core.method import Opening
from reid_core.stage import CachedStage, Encoder, StreamedStage

_drawing = threading.Lock()


@contextmanager
def _first_values(*seed: int) -> Iterator[None]:
    """First values are drawn here, from the seed alone.

    Much draws from torch's random state, which belongs to the whole process: workers that are
    threads take turns, and find it as if each were the first.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        seed_torch(*seed)
        yield


class Opener:
    """Loads the model that everything starts from, once, and opens stages on it.

    Args:
        job: the work.
        device: where modules go.
        state: what the run goes on from: the model is what its weights learned with.
    """

    def __init__(self, job: Job, device: torch.device, state: State | None = None) -> None:
        self._job, self._device = job, device
        set_tf32(job.config.trainer.allow_tf32)
        model, learned = job.config.model, Learned.of(state) if state else Learned()
        with _first_values(job.config.seed):
            self.backbone = learned.load(model, model.pretrained)

    def encoder_before_training(self) -> Encoder:
        """The encoder that the first stage starts from."""
        config = self._job.config
        size = config.model.height, config.model.width
        with _first_values(config.seed):
            encoder = self._job.method.load_encoder(config.settings, self.backbone, *size, None)
        assert isinstance(encoder, nn.Module)
        return encoder.to(self._device)

    def open(self, name: str, handed: Mapping[str, Tensor]) -> StreamedStage | CachedStage:
        """A stage with its modules on the device, ready for several workers.

        Args:
            name: of the stage.
            handed: what finished stages handed on.
        """
        config = self._job.config
        number = self._job.method.stages(config.settings).index(name)
        with _first_values(config.seed, number):
            opening = Opening(
                self.backbone,
                config.model.height,
                config.model.width,
                seed=config.seed,
                handed=handed,
                identities=self._job.identities,
            )
            stage = self._job.method.open_stage(config.settings, name, opening)
        step.make_ready(stage, config.trainer, self._device)
        return stage
