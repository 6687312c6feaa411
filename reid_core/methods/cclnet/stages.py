"""CCLNet within an epoch: what one worker does in the image stages and in the prompt stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core import losses, sampling
from reid_core.memory import ClusterMemory
from reid_core.methods.cclnet import coupling, optimization
from reid_core.methods.cclnet.settings import INPUTS, Config, ImageStage, seed_of
from reid_core.methods.refinement import Refined
from reid_core.methods.teacher import MeanTeacher
from reid_core.methods.text_stage import Side, contrast
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import Features, ImageEncoder
from reid_core.models.prompts import Chosen, PromptLearner
from reid_core.stage import Epoch, Gather, Terms, gather_together
from reid_core.types import OUTLIER, Batch, Modality, Term

TEMPLATES = {
    Modality.VISIBLE: "A visible photo of a",
    Modality.INFRARED: "An infrared photo of a",
}


# Stages 0 and 2 ----------------------------------------------------------------------------------


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
        encoder: with CLIP's weights; trained in place.
        handed: what earlier stages handed on.
    """

    clusters = True

    def __init__(
        self, config: Config, name: str, encoder: ImageEncoder, *, handed: Mapping[str, Tensor]
    ) -> None:
        settings: ImageStage = getattr(config, name)
        self.config, self.name = config, name
        self.epochs, self.evaluate_every = settings.epochs, settings.evaluate_every
        train_only(name, encoder, config)
        self._teacher = MeanTeacher(encoder, momentum=config.teacher) if config.teacher else None
        self.module = self.encoder = self._teacher or encoder
        self._handed = handed
        self._memories: dict[Modality, ClusterMemory] = {}
        self._refined: dict[Modality, Refined | None] = dict.fromkeys(INPUTS)
        self._guidance: Guidance | None = None

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, self.name, self.module)

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
        if self.name == "align" and self.config.image_to_text > 0:
            self._guidance = Guidance(
                anchors={m: self._handed[f"anchors.{m}"].to(device) for m in INPUTS},
                labels={m: self._handed[f"labels.{m}"].to(device) for m in INPUTS},
            )

    def prepare(self, batch: Mapping[Modality, Batch]) -> Mapping[Modality, Batch]:
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
        return image_terms(
            self.config,
            features,
            labels,
            self._memories,
            rows=rows,
            guidance=self._guidance,
            refined=self._refined,
        )

    def update(self, gather: Gather) -> None:
        """Momentum update of both banks with the global batch, then the swap."""
        if self._teacher is not None:
            self._teacher.follow()
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
        coupling.update(
            self.config,
            self._memories,
            {m: of_rows.flatten(0, 1) for m, of_rows in zip(INPUTS, views, strict=True)},
            dict(zip(INPUTS, repeated, strict=True)),
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
        found = {f"bank.{m}": self._memories[m].bank.cpu() for m in INPUTS}
        found |= {f"labels.{m}": torch.tensor(self._epoch.labels[m]) for m in INPUTS}
        return found | {"pairs": torch.tensor(self._epoch.pairs)}


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
    refined: Mapping[Modality, Refined | None] | None = None,
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
        refined: per modality what neighbors have voted for; None for hard labels.

    Reference: CCLNet, stages 0 and 2.
    """
    found: dict[str, Term] = {}
    for m in INPUTS:
        x, bank = functional.normalize(features[m].neck), memories[m].bank
        votes = None if refined is None else refined[m]
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
        found[str(m)] = Term(contrast, losses.count_valid(labels[m]))
    if guidance is not None:
        for m in INPUTS:
            given = guidance.labels[m][rows[m]]
            text = losses.image_to_text(
                features[m].projected, given, guidance.anchors[m], smoothing=config.smoothing
            )
            found[f"{m}_to_text"] = Term(text, losses.count_valid(given), config.image_to_text)
    return found


# Stage 1 -----------------------------------------------------------------------------------------


class Prompting:
    """Stage "prompts": words for every stage-0 cluster, against frozen image features.

    Args:
        config: the method's settings.
        clip: source of the frozen text tower.
        encoder: with CLIP's weights; frozen.
        handed: stage 0's labels.
        seed: of the tokens' first values and of the batches.
    """

    clusters = False
    evaluate_every = None

    def __init__(
        self,
        config: Config,
        clip: Backbone,
        encoder: ImageEncoder,
        *,
        handed: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.config, self.seed = config, seed
        self.epochs, self.batch_rows = config.prompts.epochs, config.prompts.batch_size
        self.encoder = encoder.eval()
        self._labels = {m: handed[f"labels.{m}"] for m in INPUTS}
        clip.text.requires_grad_(False)
        classes = {m: int(y.max()) + 1 for m, y in self._labels.items()}
        self.module = Prompts(clip, classes, seed=seed)

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, "prompts", self.module)

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, "prompts", epoch)

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The frozen image features that texts are compared with."""
        return self.encoder.project(inputs, modality)

    def take(self, features: Mapping[Modality, Tensor]) -> None:
        """Keep the features of rows that stage 0 put into a cluster."""
        known = {m: labels != OUTLIER for m, labels in self._labels.items()}
        self._labels = {m: labels[known[m]] for m, labels in self._labels.items()}
        self._images = {m: x[known[m].to(x.device)] for m, x in features.items()}

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[_Positions]:
        """See `CachedStage`; every batch holds as many rows of each modality."""
        plan = sampling.prompt_plan(
            *(len(self._labels[m]) for m in INPUTS),
            batch_size=self.batch_rows,
            seed=self.seed,
            epoch=epoch,
        )
        for positions in zip(*plan, strict=True):
            rows = dict(zip(INPUTS, map(torch.from_numpy, positions), strict=True))
            labels = {m: self._labels[m][rows[m]] for m in INPUTS}
            mine = share(self.batch_rows)
            chosen = {m: Chosen.of(y[mine].numpy()) for m, y in labels.items()}
            yield _Positions(rows, labels, mine, chosen)

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Nothing is decided between the epochs of this stage."""

    def prepare(self, batch: _Positions) -> _Positions:
        """As it is."""
        return batch

    def terms(self, model: nn.Module, batch: _Positions, gather: Gather) -> Terms:
        """L = sum over modalities of SC(image, text) + SC(text, image)."""
        images = {m: self._images[m][batch.rows[m]] for m in INPUTS}
        labels = batch.labels
        texts = model(batch.chosen)
        everyone = gather_together(gather, *(texts[m] for m in INPUTS))
        all_texts = dict(zip(INPUTS, everyone, strict=True))
        found: Terms = {}
        for m in INPUTS:
            found[f"{m}_to_text"], found[f"text_to_{m}"] = contrast(
                Side(images[m][batch.mine], images[m], labels[m]),
                Side(texts[m], all_texts[m], labels[m]),
                labels[m][batch.mine],
                temperature=self.config.prompts.temperature,
            )
        return found

    def update(self, gather: Gather) -> None:
        """No memory."""

    def hand_on(self) -> dict[str, Tensor]:
        """The text anchors of every cluster."""
        return {f"anchors.{m}": x.cpu() for m, x in self.module.anchors().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beside the module."""
        return {}


@dataclass(frozen=True)
class _Positions:
    """A global batch.

    Attributes:
        rows, labels: per modality (B,).
        mine: the slice of them that is this worker's.
        chosen: per modality the classes of that slice.
    """

    rows: dict[Modality, Tensor]
    labels: dict[Modality, Tensor]
    mine: slice
    chosen: dict[Modality, Chosen]


class Prompts(nn.Module):
    """One prompt learner per modality, one row of four tokens per stage-0 cluster.

    Args:
        clip: source of the frozen text tower.
        num_classes: stage-0 clusters per modality.
        seed: of the tokens' first values.
    """

    def __init__(self, clip: Backbone, num_classes: Mapping[Modality, int], *, seed: int) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(
            {
                str(m): PromptLearner(
                    clip.text,
                    num_classes=num_classes[m],
                    prefix=TEMPLATES[m],
                    seed=seed_of(seed, "prompts", m),
                )
                for m in INPUTS
            }
        )

    def forward(self, chosen: Mapping[Modality, Chosen]) -> dict[Modality, Tensor]:
        """Text features (B, E) per modality of the chosen classes, not normalized."""
        return {m: self.learners[str(m)](chosen[m]) for m in INPUTS}

    @torch.no_grad()
    def anchors(self) -> dict[Modality, Tensor]:
        """Text features (C, E) of every class, the constants of stage 2."""
        return {m: self.learners[str(m)](None) for m in INPUTS}
