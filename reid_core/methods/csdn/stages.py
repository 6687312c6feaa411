"""CSDN, stages 1 and 2: texts are trained on image features that were computed once.

What one worker does within an epoch. Shapes: B rows of a worker's slice, G of the global batch,
C identities, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from reid_core import sampling
from reid_core.method import Labels
from reid_core.methods.csdn import optimization
from reid_core.methods.csdn.images import Descriptor
from reid_core.methods.csdn.settings import INPUTS, Config, num_identities, seed_of
from reid_core.methods.text_stage import Side, contrast
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.models.fusion import TextFusion, dropout_factors
from reid_core.models.prompts import Chosen, PromptLearner
from reid_core.stage import CachedRows, Gather, Terms, gather_together
from reid_core.types import Modality

TEMPLATE = "A photo of a"  # of both modalities; only the learnt words tell them apart


def pairs(
    config: Config,
    labels: Labels,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    stage: str = "prompts",
) -> tuple[np.ndarray, ...]:
    """Batches (batches, batch_size) of visible and of infrared rows, one identity in each place.

    Stage "fusion" draws a sample of its own, as the public code does: fewer are left out.
    """
    is_anew = stage == "fusion" and config.pool == "sample"
    sides, seed = [labels[m] for m in INPUTS], seed_of(seed, "fusion pairs" if is_anew else "pairs")
    if config.pool == "all":
        return sampling.paired_plan(*sides, batch_size=batch_size, seed=seed, epoch=epoch)
    pool = sample(config, labels, seed=seed)
    order = sampling.shuffled_batches(pool[0].size, batch_size=batch_size, seed=seed, epoch=epoch)
    return tuple(rows.ravel()[order] for rows in pool)


def sample(config: Config, labels: Labels, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One epoch of stage 3's batches, drawn once: all that the reference shows to stages 1, 2."""
    visible, infrared = (labels[m] for m in INPUTS)
    identities, instances = config.images.identities_per_batch, config.images.instances
    return sampling.paired_pk_plan(
        visible,
        infrared,
        num_classes=identities,
        num_instances=instances,
        num_batches=sampling.num_batches(
            len(visible), len(infrared), num_clusters=identities, num_instances=instances
        ),
        seed=seed,
        epoch=0,
    )


@dataclass(frozen=True)
class PairBatch:
    """A global batch of stage 1.

    Attributes:
        rows: per modality (B,).
        identities: (B,) of the rows, alike in both modalities.
        own_rows: the slice of them that is this worker's.
        chosen: the identities of that slice.
    """

    rows: dict[Modality, Tensor]
    identities: Tensor
    own_rows: slice
    chosen: Chosen


class Prompts(nn.Module):
    """Four learnt words per identity, for each modality or, with "shared" anchors, for both.

    Args:
        config: the method's settings.
        backbone: source of the text tower, which is frozen.
        num_identities: C.
        seed: of the words' first values.
    """

    def __init__(
        self, config: Config, backbone: Backbone, num_identities: int, *, seed: int
    ) -> None:
        super().__init__()
        backbone.text.requires_grad_(False)
        self.shared = config.anchors == "shared"
        self.learners = nn.ModuleDict(
            {
                str(m): PromptLearner(
                    backbone.text,
                    num_classes=num_identities,
                    prefix=TEMPLATE,
                    seed=seed_of(seed, f"tokens.{m}"),
                )
                for m in (INPUTS[:1] if self.shared else INPUTS)
            }
        )

    def forward(self, chosen: Chosen | None) -> dict[Modality, Tensor]:
        """Text features (B, E) per modality of identities, None for all; not normalized."""
        texts = {Modality(name): learner(chosen) for name, learner in self.learners.items()}
        return dict.fromkeys(INPUTS, texts[INPUTS[0]]) if self.shared else texts


class Prompting:
    """Stage "prompts": words for every identity and modality, against frozen image features.

    Args:
        config: the method's settings.
        backbone: source of the frozen text tower.
        encoder: with the first weights; frozen.
        identities: per modality (n,) identities from 0, -1 unknown.
        seed: of the words' first values and of the batches.
    """

    evaluate_every = None

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        encoder: ImageEncoder,
        *,
        identities: Labels,
        seed: int,
    ) -> None:
        self.config, self.seed, self._identities = config, seed, identities
        self.epochs, self.batch_rows = config.prompts.epochs, config.prompts.batch_size
        self.encoder = Descriptor(encoder.eval().requires_grad_(False), flip=False)
        self.module = Prompts(config, backbone, num_identities(identities), seed=seed)

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
        """Keep the features of all images."""
        self._images = features

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[PairBatch]:
        """See `CachedStage`; the two rows in one place show one identity."""
        plan = pairs(
            self.config,
            self._identities,
            batch_size=self.batch_rows,
            seed=self.seed,
            epoch=epoch,
        )
        for positions in zip(*plan, strict=True):
            rows = dict(zip(INPUTS, map(torch.from_numpy, positions), strict=True))
            identities = self._identities[INPUTS[0]][positions[0]]
            own = share(self.batch_rows)
            chosen = Chosen.of(identities[own])
            yield PairBatch(rows, torch.from_numpy(identities), own, chosen)

    def terms(self, model: nn.Module, batch: PairBatch, gather: Gather) -> Terms:
        """The contrast of images and texts, for each modality or jointly."""
        identities = batch.identities
        images = {m: self._images[m][batch.rows[m]] for m in INPUTS}
        texts = model(batch.chosen)
        all_texts = gather_together(gather, *(texts[m] for m in INPUTS))
        everyone = dict(zip(INPUTS, all_texts, strict=True))
        groups = {"joint": (INPUTS,), "separate": tuple((m,) for m in INPUTS)}
        result: Terms = {}
        for group in groups[self.config.pairing]:
            labels = identities.repeat(len(group))
            to_text, to_image = contrast(
                Side(
                    torch.cat([images[m][batch.own_rows] for m in group]),
                    torch.cat([images[m] for m in group]),
                    labels,
                ),
                Side(
                    torch.cat([texts[m] for m in group]),
                    torch.cat([everyone[m] for m in group]),
                    labels,
                ),
                identities[batch.own_rows].repeat(len(group)),
                temperature=self.config.prompts.temperature,
            )
            name = group[0] if len(group) == 1 else "image"
            result |= {f"{name}_to_text": to_text, f"text_to_{name}": to_image}
        return result

    def update(self, gather: Gather) -> None:
        """No memory."""

    @torch.no_grad()
    def hand_on(self) -> dict[str, Tensor]:
        """The texts (C, E) of every identity and modality."""
        return {f"texts.{m}": x.cpu() for m, x in self.module(None).items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beside the module."""
        return {}


@dataclass(frozen=True)
class MixedBatch:
    """A global batch of stage 2.

    Attributes:
        rows: (B,) of all images, visible ones first.
        own_rows: the slice of them that is this worker's.
        keep: dropout factors (B, E) of the worker's rows.
    """

    rows: Tensor
    own_rows: slice
    keep: Tensor


class Fusing:
    """Stage "fusion": how the two texts of an identity become one, against frozen image features.

    Args:
        config: the method's settings.
        encoder: with the first weights; frozen.
        identities: per modality (n,) identities from 0, -1 unknown.
        handed: stage 1's texts.
        seed: of the first values, the batches and the dropout.
    """

    evaluate_every = None

    def __init__(
        self,
        config: Config,
        encoder: ImageEncoder,
        *,
        identities: Labels,
        handed: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.config, self.seed, self._identities = config, seed, identities
        self.epochs, self.batch_rows = config.fusion.epochs, 2 * config.fusion.batch_size
        self.encoder = Descriptor(encoder.eval().requires_grad_(False), flip=False)
        self.module = TextFusion(encoder.embed_dim, seed=seed_of(seed, "fusion"))
        own, other = INPUTS if config.query == "visible" else INPUTS[::-1]
        self._texts = handed[f"texts.{own}"], handed[f"texts.{other}"]

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, "fusion", self.module)

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, "fusion", epoch)

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The frozen image features that texts are compared with."""
        return self.encoder.project(inputs, modality)

    def take(self, features: Mapping[Modality, CachedRows]) -> None:
        """Keep the features of all images, and bring the texts to them."""
        self._images = features
        device = features[INPUTS[0]].device
        identities = np.concatenate([self._identities[m] for m in INPUTS])
        self._labels = torch.as_tensor(identities, device=device)
        own, other = self._texts
        self._texts = own.to(device), other.to(device)

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[MixedBatch]:
        """See `CachedStage`; batches mix the modalities, evenly over the epoch."""
        visible, infrared = pairs(
            self.config,
            self._identities,
            batch_size=self.config.fusion.batch_size,
            seed=self.seed,
            epoch=epoch,
            stage="fusion",
        )
        pool = np.concatenate([visible, infrared + len(self._identities[INPUTS[0]])], axis=None)
        seed = seed_of(self.seed, "dropout")
        plan = sampling.shuffled_batches(
            len(pool), batch_size=self.batch_rows, seed=seed, epoch=epoch
        )
        step_seeds = sampling.augmentation_seeds((len(plan),), seed=seed, epoch=epoch)
        for positions, step_seed in zip(plan, step_seeds, strict=True):
            rows, own = torch.from_numpy(pool[positions]), share(self.batch_rows)
            keep = self._keep(len(rows), seed=int(step_seed))
            yield MixedBatch(rows, own, keep[own])

    def terms(self, model: nn.Module, batch: MixedBatch, gather: Gather) -> Terms:
        """The contrast of images and the fused texts of their identities."""
        images, identities = self._features(batch.rows), self._labels[batch.rows]
        labels = identities[batch.own_rows]
        own, other = self._texts
        fused = model(own[labels], other[labels], batch.keep)
        to_text, to_image = contrast(
            Side(images[batch.own_rows], images, identities),
            Side(fused, gather(fused), identities),
            labels,
            temperature=self.config.fusion.temperature,
        )
        return {"image_to_text": to_text, "text_to_image": to_image}

    def update(self, gather: Gather) -> None:
        """No memory."""

    @torch.no_grad()
    def hand_on(self) -> dict[str, Tensor]:
        """The fused anchor (C, E) of every identity."""
        own, other = self._texts
        keep = None
        if self.config.anchor_dropout:
            keep = self._keep(len(own), seed=seed_of(self.seed, "dropout")).to(own.device)
        return {"fused": self.module(own, other, keep).cpu()}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beside the module."""
        return {}

    def _features(self, rows: Tensor) -> Tensor:
        """Features of rows that are counted through both modalities, visible ones first."""
        visible, infrared = (self._images[m] for m in INPUTS)
        num = visible.shape[0]
        first, second = visible[rows.clamp(max=num - 1)], infrared[(rows - num).clamp(min=0)]
        return torch.where((rows < num)[:, None], first, second)

    def _keep(self, num_rows: int, *, seed: int) -> Tensor:
        visible = self._images[INPUTS[0]]
        shape = num_rows, visible.shape[1]
        return dropout_factors(shape, rate=self.config.dropout, seed=seed).to(visible.dtype)


def anchors(config: Config, handed: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
    """The text (C, E) of every identity that guides the images of each modality in stage 3."""
    if config.anchors == "fusion":
        return dict.fromkeys(INPUTS, handed["fused"])
    texts = {m: handed[f"texts.{m}"] for m in INPUTS}
    if config.anchors == "mean":
        return dict.fromkeys(INPUTS, torch.stack(list(texts.values())).mean(dim=0))
    return texts
