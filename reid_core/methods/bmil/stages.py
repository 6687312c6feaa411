"""BMIL within an epoch: images are drawn to the prototypes of their separate and joint clusters.

Shapes: B rows of a worker's slice, V views of a row, C clusters of a modality, P proxies, D
feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core.memory import HybridMemory
from reid_core.methods.bmil import optimization, settings
from reid_core.methods.bmil.objectives import (
    ProxyTable,
    joint_terms,
    move,
    move_jointly,
    separate_terms,
)
from reid_core.methods.bmil.settings import INPUTS, JOINT, SEPARATE, Config
from reid_core.methods.mirror_mean import MirrorMean
from reid_core.methods.refinement import Refined
from reid_core.methods.teacher import MeanTeacher
from reid_core.models.encoders import Features, ImageEncoder
from reid_core.stage import Epoch, Gather, Terms
from reid_core.types import Batch, Modality


class Images:
    """Both stages; "joint" takes steps on separate and on joint labels in turn.

    Args:
        config: the method's settings.
        name: of the stage.
        encoder: trained in place.
    """

    def __init__(self, config: Config, name: str, encoder: ImageEncoder) -> None:
        stage: settings.Stage = getattr(config, name)
        self.config, self.name = config, name
        self.epochs, self.evaluate_every = stage.epochs, stage.evaluate_every
        encoder.requires_grad_(True)
        encoder.neck.bias.requires_grad_(False)
        encoder.leave_projection()
        self._student = encoder
        self._teacher = MeanTeacher(encoder, momentum=config.teacher) if config.teacher else None
        self.module = self._teacher or encoder
        self.encoder = MirrorMean(self.module) if config.flip else self.module
        self._kinds: tuple[str, ...] = (SEPARATE,)
        if name == "joint":
            self._kinds = (SEPARATE, JOINT) if config.joint.separate_steps else (JOINT,)

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        optimizer = optimization.optimizer(self.config, self.name, self.module)
        if self._teacher is not None:
            self._teacher.follow(optimizer)
        return optimizer

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, self.name, epoch)

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Fresh memories from the epoch's prototypes."""
        device = next(self.module.parameters()).device
        self._epoch = epoch
        self._memories = {
            name.removeprefix("bank."): HybridMemory(
                torch.tensor(bank, device=device), momentum=self.config.memory.momentum
            )
            for name, bank in epoch.arrays.items()
            if name.startswith("bank.")
        }
        self._refined = {
            (kind, m): Refined.of(_below(epoch.arrays, f"{kind}."), m, device)
            for kind in self._kinds
            for m in INPUTS
        }
        if JOINT in self._kinds:
            self._proxies = ProxyTable.of(epoch.arrays, device)

    def on_host(self, batch: dict[Modality, Batch]) -> dict[Modality, Batch]:
        """As it is."""
        return batch

    def terms(self, model: nn.Module, batch: Mapping[Modality, Batch], gather: Gather) -> Terms:
        """The losses of one step, of the kind of the batch; see `separate_terms`, `joint_terms`."""
        sizes = [len(batch[m].images) for m in INPUTS]
        output: Features = model(*(batch[m].images for m in INPUTS))
        units = functional.normalize(output.neck.float(), dim=1).split(sizes)
        # a row's views stand side by side and share its label
        x = {
            m: unit.unflatten(0, (len(batch[m].rows), -1))
            for m, unit in zip(INPUTS, units, strict=True)
        }
        kind = batch[INPUTS[0]].kind
        labels = {m: batch[m].labels for m in INPUTS}
        rows = {m: batch[m].rows for m in INPUTS}
        self._seen = kind, {m: of_rows.detach() for m, of_rows in x.items()}, labels
        votes = {m: self._refined[kind, m] for m in INPUTS}
        if kind == SEPARATE:
            memories = {m: self._memories[str(m)] for m in INPUTS}
            return separate_terms(
                self.config, x, labels, memories, rows=rows, votes=votes, gather=gather
            )
        return joint_terms(
            self.config,
            x,
            labels,
            self._memories[JOINT],
            self._proxies,
            rows=rows,
            votes=votes,
            gather=gather,
        )

    def update(self, gather: Gather) -> None:
        """Moves the prototypes of the batch's kind; those of the other kind stay."""
        kind, x, labels = self._seen
        if kind == JOINT:
            move_jointly(self._memories[JOINT], self._proxies, x, labels, gather)
            return
        move({m: self._memories[str(m)] for m in INPUTS}, x, labels, gather)

    def hand_on(self) -> dict[str, Tensor]:
        """Stage 1 hands on its weights, stage 2 nothing."""
        if self.name == "joint":
            return {}
        encoder = self._student if self._teacher is None else self._teacher.teacher
        return {f"{settings.HANDED_WEIGHTS}{n}": x for n, x in encoder.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Banks and labels of the epoch, and pairs of equal ones where they hold for both."""
        state = {
            f"bank.{name}.{part}": bank.cpu()
            for name, memory in self._memories.items()
            for part, bank in memory.state_dict().items()
        }
        state |= {f"labels.{m}": torch.tensor(self._epoch.labels[m]) for m in INPUTS}
        return state | {"pairs": torch.tensor(self._epoch.pairs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The banks; labels and pairs came with the epoch."""
        for name, memory in self._memories.items():
            memory.load_state_dict(_below(state, f"bank.{name}."))


def encoder_of(handed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's state among what stage 1 has handed on; empty without it."""
    return _below(handed, settings.HANDED_WEIGHTS)


def _below(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): x for n, x in named.items() if n.startswith(prefix)}
