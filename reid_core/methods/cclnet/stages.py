"""CCLNet within an epoch of stages 0 and 2: what one worker does with images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core import losses
from reid_core.memory import ClusterMemory
from reid_core.methods.cclnet import coupling, optimization
from reid_core.methods.cclnet.across import Across
from reid_core.methods.cclnet.settings import INPUTS, Config, ImageStage
from reid_core.methods.mirror_mean import MirrorMean
from reid_core.methods.refinement import Refined
from reid_core.methods.teacher import MeanTeacher
from reid_core.models.encoders import Features, ImageEncoder
from reid_core.stage import Epoch, Gather, Terms, gather_together
from reid_core.types import Batch, Modality, Term


@dataclass(frozen=True)
class Guidance:
    """What stage 1 hands to stage 2: text anchors (C, E) and stage-0 labels (n,) per modality."""

    anchors: dict[Modality, Tensor]
    labels: dict[Modality, Tensor]


class Images:
    """Stages "prepare" and "align": images are drawn to the prototypes of their clusters.

    Args:
        config: the method's settings.
        name: of the stage.
        encoder: with the first weights; trained in place.
        handed: what earlier stages handed on.
    """

    def __init__(
        self, config: Config, name: str, encoder: ImageEncoder, *, handed: Mapping[str, Tensor]
    ) -> None:
        settings: ImageStage = getattr(config, name)
        self.config, self.name = config, name
        self.epochs, self.evaluate_every = settings.epochs, settings.evaluate_every
        train_only(name, encoder, config)
        self._teacher = MeanTeacher(encoder, momentum=config.teacher) if config.teacher else None
        self.module = self._teacher or encoder
        self.encoder = MirrorMean(self.module) if config.flip else self.module
        self._handed = handed
        self._memories: dict[Modality, ClusterMemory] = {}
        self._refined: dict[Modality, Refined | None] = dict.fromkeys(INPUTS)
        self._guidance: Guidance | None = None
        self._across: Across | None = None

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
        self._number, self._epoch = number, epoch
        self._pairs = torch.as_tensor(epoch.pairs, device=device)
        self._memories = {
            m: ClusterMemory(
                torch.tensor(epoch.prototypes[m], device=device),
                momentum=self.config.memory.momentum,
                temperature=self.config.memory.temperature,
            )
            for m in INPUTS
        }
        self._refined = {m: Refined.of(epoch.arrays, m, device) for m in INPUTS}
        self._across = Across.of(self.config, epoch, number, device)
        if self.name == "align" and self.config.image_to_text > 0:
            self._guidance = Guidance(
                anchors={m: self._handed[f"anchors.{m}"].to(device) for m in INPUTS},
                labels={m: self._handed[f"labels.{m}"].to(device) for m in INPUTS},
            )

    def on_host(self, batch: dict[Modality, Batch]) -> dict[Modality, Batch]:
        """As it is."""
        return batch

    def terms(self, model: nn.Module, batch: Mapping[Modality, Batch], gather: Gather) -> Terms:
        """L = L_v + L_r + lambda (I_v + I_r), see `image_terms`."""
        sizes = [len(batch[m].images) for m in INPUTS]
        output: Features = model(*(batch[m].images for m in INPUTS))
        parts = [x.split(sizes) for x in (output.pooled, output.neck, output.projected)]
        features = {m: Features(*(part[i] for part in parts)) for i, m in enumerate(INPUTS)}
        # a row's views stand side by side and share its label
        views = {m: size // len(batch[m].rows) for m, size in zip(INPUTS, sizes, strict=True)}
        labels = {m: batch[m].labels.repeat_interleave(views[m]) for m in INPUTS}
        rows = {m: batch[m].rows.repeat_interleave(views[m]) for m in INPUTS}
        units = {m: functional.normalize(features[m].neck.detach()) for m in INPUTS}
        by_row = {m: x.unflatten(0, (-1, views[m])) for m, x in units.items()}
        self._seen = by_row, {m: batch[m].labels for m in INPUTS}
        terms = image_terms(
            self.config,
            features,
            labels,
            self._memories,
            rows=rows,
            guidance=self._guidance,
            refined=self._refined,
        )
        if self._across is not None:
            necks = {m: functional.normalize(features[m].neck) for m in INPUTS}
            terms |= self._across.terms(self.config, necks, labels, self._memories, rows=rows)
        return terms

    def update(self, gather: Gather) -> None:
        """Momentum update of both banks with the global batch, then the swap."""
        x, labels = ([side[m] for m in INPUTS] for side in self._seen)
        everyone = gather_together(gather, *x, *labels)
        views = everyone[: len(x)]
        most = {  # a class fills its places with all views of its rows
            m: of_rows.shape[1] * self._epoch.repeats[m]
            for m, of_rows in zip(INPUTS, views, strict=True)
            if m in self._epoch.repeats
        }
        repeated = [
            y.repeat_interleave(of_rows.shape[1])
            for of_rows, y in zip(views, everyone[len(x) :], strict=True)
        ]
        units = {m: of_rows.flatten(0, 1) for m, of_rows in zip(INPUTS, views, strict=True)}
        of_units = dict(zip(INPUTS, repeated, strict=True))
        if self._across is not None:
            self._across.update(self.config, self._memories, units, of_units, repeats=most)
        coupling.update(
            self.config,
            self._memories,
            units,
            of_units,
            pairs=self._pairs,
            repeats=most,
            epoch=self._number,
        )

    def hand_on(self) -> dict[str, Tensor]:
        """Stage 0 hands on its last labels, stage 2 nothing."""
        if self.name == "align":
            return {}
        return {f"labels.{m}": torch.tensor(self._epoch.labels[m]) for m in INPUTS}

    def state_dict(self) -> dict[str, Tensor]:
        """Banks, labels and pairs of the epoch."""
        result = {f"bank.{m}": self._memories[m].bank.cpu() for m in INPUTS}
        result |= {f"labels.{m}": torch.tensor(self._epoch.labels[m]) for m in INPUTS}
        return result | {"pairs": torch.tensor(self._epoch.pairs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The banks; labels and pairs came with the epoch."""
        for m, memory in self._memories.items():
            memory.bank = state[f"bank.{m}"].to(memory.bank.device).clone()


def train_only(stage: str, encoder: ImageEncoder, config: Config) -> None:
    """Switch gradients on for what a stage trains: texts are for stage 2 alone."""
    encoder.requires_grad_(True)
    encoder.neck.bias.requires_grad_(False)
    if stage == "prepare" or config.image_to_text == 0:
        encoder.leave_projection()


def image_terms(
    config: Config,
    features: Mapping[Modality, Features],
    labels: Mapping[Modality, Tensor],
    memories: Mapping[Modality, ClusterMemory],
    *,
    rows: Mapping[Modality, Tensor],
    guidance: Guidance | None,
    refined: Mapping[Modality, Refined | None],
) -> dict[str, Term]:
    """The losses of one step on this worker's slice of the global batch.

    L = L_v + L_r + lambda (I_v + I_r), means over rows; I leaves out stage-0 outliers.

    Args:
        config: the method's configuration.
        features: per modality, the encoder's outputs for B rows.
        labels: per modality (B,) cluster labels of this epoch.
        memories: per modality, this epoch's prototypes.
        rows: per modality (B,) rows of the modality, to look up stage-0 labels.
        guidance: anchors and labels of stages 0 and 1; None in stage 0.
        refined: per modality what neighbors have voted for, or None for hard labels.

    Reference: CCLNet, stages 0 and 2.
    """
    result: dict[str, Term] = {}
    for m in INPUTS:
        x, bank = functional.normalize(features[m].neck), memories[m].bank
        votes = refined[m]
        if votes is None:
            contrast = losses.cluster_contrast(
                x, labels[m], bank, temperature=memories[m].temperature
            )
        else:
            targets = votes.targets(rows[m], labels[m], len(bank), config.refine)
            contrast = losses.scored_contrast(
                x,
                targets,
                bank,
                temperature=memories[m].temperature,
                weights=votes.weights[rows[m]] if config.refine.weights else None,
            )
        result[str(m)] = Term(contrast, losses.count_valid(labels[m]))
    if guidance is not None:
        for m in INPUTS:
            given = guidance.labels[m][rows[m]]
            text = losses.image_to_text(
                features[m].projected, given, guidance.anchors[m], smoothing=config.smoothing
            )
            result[f"{m}_to_text"] = Term(text, losses.count_valid(given), config.image_to_text)
    return result
