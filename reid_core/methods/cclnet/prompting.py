"""CCLNet's stage 1: words for every cluster of stage 0, against frozen image features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid_core import sampling
from reid_core.methods.cclnet import optimization
from reid_core.methods.cclnet.settings import INPUTS, Config, seed_of
from reid_core.methods.text_stage import Side, contrast
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.models.prompts import Chosen, PromptLearner
from reid_core.stage import CachedRows, Gather, Terms, gather_together
from reid_core.types import OUTLIER, Modality

TEMPLATES = {
    Modality.VISIBLE: "A visible photo of a",
    Modality.INFRARED: "An infrared photo of a",
}


class Prompting:
    """Stage "prompts": words for every stage-0 cluster, against frozen image features.

    Args:
        config: the method's settings.
        backbone: source of the frozen text tower.
        encoder: with the first weights; frozen.
        handed: stage 0's labels.
        seed: of the tokens' first values and of the batches.
    """

    evaluate_every = None

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        encoder: ImageEncoder,
        *,
        handed: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.config, self.seed = config, seed
        self.epochs, self.batch_rows = config.prompts.epochs, config.prompts.batch_size
        self.encoder = encoder.eval()
        self._labels = {m: handed[f"labels.{m}"] for m in INPUTS}
        backbone.text.requires_grad_(False)
        classes = {m: int(y.max()) + 1 for m, y in self._labels.items()}
        self.module = Prompts(backbone, classes, seed=seed)

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, "prompts", self.module)

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, "prompts", epoch)

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The frozen image features that texts are compared with."""
        return self.encoder.project(inputs, modality)

    def take(self, features: Mapping[Modality, CachedRows]) -> None:
        """Keep the features; those of rows that stage 0 put into a cluster will be read."""
        known = {m: labels != OUTLIER for m, labels in self._labels.items()}
        self._rows = {m: torch.nonzero(is_known).flatten() for m, is_known in known.items()}
        self._labels = {m: labels[known[m]] for m, labels in self._labels.items()}
        self._images = features

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[_Positions]:
        """See `CachedStage`; every batch holds as many rows of each modality."""
        plan = sampling.prompt_plan(
            *(len(self._labels[m]) for m in INPUTS),
            batch_size=self.batch_rows,
            seed=self.seed,
            epoch=epoch,
        )
        for positions in zip(*plan, strict=True):
            places = dict(zip(INPUTS, map(torch.from_numpy, positions), strict=True))
            labels = {m: self._labels[m][places[m]] for m in INPUTS}
            rows = {m: self._rows[m][places[m]] for m in INPUTS}
            own = share(self.batch_rows)
            chosen = {m: Chosen.of(y[own].numpy()) for m, y in labels.items()}
            yield _Positions(rows, labels, own, chosen)

    def terms(self, model: nn.Module, batch: _Positions, gather: Gather) -> Terms:
        """L = sum over modalities of SC(image, text) + SC(text, image)."""
        images = {m: self._images[m][batch.rows[m]] for m in INPUTS}
        labels = batch.labels
        texts = model(batch.chosen)
        everyone = gather_together(gather, *(texts[m] for m in INPUTS))
        all_texts = dict(zip(INPUTS, everyone, strict=True))
        result: Terms = {}
        for m in INPUTS:
            result[f"{m}_to_text"], result[f"text_to_{m}"] = contrast(
                Side(images[m][batch.own_rows], images[m], labels[m]),
                Side(texts[m], all_texts[m], labels[m]),
                labels[m][batch.own_rows],
                temperature=self.config.prompts.temperature,
            )
        return result

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
        own_rows: the slice of them that is this worker's.
        chosen: per modality the classes of that slice.
    """

    rows: dict[Modality, Tensor]
    labels: dict[Modality, Tensor]
    own_rows: slice
    chosen: dict[Modality, Chosen]


class Prompts(nn.Module):
    """One prompt learner per modality, one row of four tokens per stage-0 cluster.

    Args:
        backbone: source of the frozen text tower.
        num_classes: stage-0 clusters per modality.
        seed: of the tokens' first values.
    """

    def __init__(
        self, backbone: Backbone, num_classes: Mapping[Modality, int], *, seed: int
    ) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(
            {
                str(m): PromptLearner(
                    backbone.text,
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
