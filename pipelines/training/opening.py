"""Opening: the pre-trained model, and stages on it, ready for their device and their workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipelines.distributed.precision import set_tf32
from pipelines.training import step
from pipelines.training.job import Job
from reid_core.method import Opening
from reid_core.models import backbones
from reid_core.stage import Encoder, Stage

# First values are drawn from torch's global random state, which belongs to the whole process.
_first_values = threading.Lock()


class Opener:
    """Loads the model that everything starts from, once, and opens stages on it.

    Args:
        job: the work.
        device: where modules go.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        set_tf32(job.config.trainer.allow_tf32)
        model = job.config.model
        with _first_values:
            self.backbone = backbones.load(
                model.name, model.pretrained, options=model.options(), tagged=True
            )

    def encoder_before_training(self) -> Encoder:
        """The encoder that the first stage starts from."""
        config = self._job.config
        size = config.model.height, config.model.width
        with _first_values:
            encoder = self._job.method.load_encoder(config.settings, self.backbone, *size, None)
        assert isinstance(encoder, nn.Module)
        return encoder.to(self._device)

    def open(self, name: str, handed: Mapping[str, Tensor]) -> Stage:
        """A stage with its modules on the device, ready for several workers.

        Args:
            name: of the stage.
            handed: what finished stages handed on.
        """
        config = self._job.config
        with _first_values:
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
