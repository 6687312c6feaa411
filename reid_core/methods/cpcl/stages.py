"""CPCL within an epoch: the losses of one worker's step, and the update of the memory (PMM).

Shapes: B pairs of a worker's slice, G pairs of the global batch, C clusters, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor, nn

from reid_core import losses, text
from reid_core.memory import ClusterMemory
from reid_core.methods.cpcl import optimization
from reid_core.methods.cpcl.settings import INPUTS, Config, uses_prototypes
from reid_core.methods.refinement import padded
from reid_core.models.text_image import TextImageEncoder
from reid_core.stage import Epoch, Gather, Terms, gather_together
from reid_core.types import OUTLIER, Batch, Modality, Term

VISIBLE, TEXT = INPUTS


@dataclass(frozen=True)
class Pairs:
    """Embedded pairs, of one worker or of all.

    Attributes:
        features: per modality (B, D) unit rows.
        labels: per modality (B,) int64 clusters, -1 = outlier.
        rows: (B,) int64 image of each pair.
    """

    features: dict[Modality, Tensor]
    labels: dict[Modality, Tensor]
    rows: Tensor

    def gathered(self, gather: Gather) -> Pairs:
        """The pairs of the global batch, in its order; gradients flow back to their owners."""
        features = (self.features[m] for m in INPUTS)
        labels = (self.labels[m] for m in INPUTS)
        whole = gather_together(gather, *features, *labels, self.rows)
        return Pairs(
            dict(zip(INPUTS, whole[:2], strict=True)),
            dict(zip(INPUTS, whole[2:4], strict=True)),
            whole[4],
        )


@dataclass(frozen=True)
class Prototypes:
    """The memory of one epoch.

    Attributes:
        memories: prototypes per modality.
        together: per modality m the clusters of the other one that each of its clusters occurs with
            in training pairs, and how often: (C_m, W) both, a count of 0 fills up.
    """

    memories: dict[Modality, ClusterMemory]
    together: dict[Modality, tuple[Tensor, Tensor]]


class Train:
    """The one stage: instances are matched with each other and with prototypes.

    Args:
        config: the method's settings.
        encoder: with the first weights; trained in place.
        seed: of the masked words.
    """

    def __init__(self, config: Config, encoder: TextImageEncoder, *, seed: int) -> None:
        self.config, self._seed = config, seed
        self.epochs, self.evaluate_every = config.train.epochs, config.train.evaluate_every
        self.module = self.encoder = encoder

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, self.module)

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, epoch)

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """A fresh memory from the epoch's prototypes and labels."""
        device = next(self.module.parameters()).device
        self._number, self._epoch = number, epoch
        self._text_labels = torch.tensor(epoch.labels[TEXT], device=device)
        self._prototypes = open_prototypes(self.config, epoch, device)

    def on_host(self, batch: dict[Modality, Batch]) -> dict[Modality, Batch]:
        """Captions masked and cut at their longest end."""
        return {m: replace(part, tokens=self._tokens(part)) for m, part in batch.items()}

    def terms(self, model: nn.Module, batch: Mapping[Modality, Batch], gather: Gather) -> Terms:
        """L = L_ins + lambda1 L_pmm + lambda2 L_xp, see `pair_terms`."""
        visible = batch[VISIBLE]
        assert visible.captions is not None
        images, texts = model(self.encoder.normalize(visible.images), visible.tokens)
        # similarities over a temperature of 0.02 need more than half precision
        features = {VISIBLE: images.float(), TEXT: texts.float()}
        labels = {VISIBLE: visible.labels, TEXT: self._text_labels[visible.captions]}
        own = Pairs(features, labels, visible.rows)
        everyone = own.gathered(gather)
        self._seen = everyone
        with_prototypes = uses_prototypes(self.config, self._number)
        prototypes = self._prototypes if with_prototypes else None
        return pair_terms(self.config, own, everyone, prototypes)

    def update(self, gather: Gather) -> None:
        """Momentum update of both banks with the global batch, each with its own modality."""
        repeats = self._epoch.repeats
        update(self.config, self._prototypes.memories, self._seen, repeats=repeats)

    def hand_on(self) -> dict[str, Tensor]:
        """Nothing: there is no later stage."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Banks, labels and pairs of the epoch."""
        result = {f"bank.{m}": self._prototypes.memories[m].bank.cpu() for m in INPUTS}
        result |= {f"labels.{m}": torch.tensor(self._epoch.labels[m]) for m in INPUTS}
        return result | {"pairs": torch.tensor(self._epoch.pairs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The banks; labels and pairs came with the epoch."""
        for m, memory in self._prototypes.memories.items():
            memory.bank = state[f"bank.{m}"].to(memory.bank.device).clone()

    def _tokens(self, batch: Batch) -> Tensor:
        assert batch.tokens is not None
        assert batch.captions is not None
        tokens, share = batch.tokens.numpy(), self.config.train.text_mask
        if share:
            tokens = text.mask_tokens(
                tokens,
                batch.captions.numpy(),
                probability=share,
                seed=self._seed,
                epoch=self._number,
            )
        return torch.from_numpy(np.ascontiguousarray(text.trimmed(tokens)))


def open_prototypes(config: Config, epoch: Epoch, device: torch.device) -> Prototypes:
    """The memory that an epoch starts with."""
    memories = {
        m: ClusterMemory(
            torch.tensor(epoch.prototypes[m], device=device),
            momentum=config.memory.momentum,
            temperature=config.memory.temperature,
        )
        for m in INPUTS
    }
    sizes = (len(epoch.prototypes[VISIBLE]), len(epoch.prototypes[TEXT]))
    counts = coo_array((np.ones(len(epoch.pairs)), tuple(epoch.pairs.T)), shape=sizes)
    together = {VISIBLE: csr_array(counts), TEXT: csr_array(counts.T)}
    on_device = {}
    for m, of_m in together.items():
        clusters, times = padded(of_m)
        on_device[m] = torch.from_numpy(clusters).to(device), torch.from_numpy(times).to(device)
    return Prototypes(memories, on_device)


def pair_terms(
    config: Config, pairs: Pairs, everyone: Pairs, prototypes: Prototypes | None
) -> Terms:
    """The losses of one step on this worker's slice of the global batch.

    L = L_ins + lambda1 (L_VV + L_TT) / 2 + lambda2 (L_VT + L_TV) / 2. The instance loss is that of
    the global batch, the same on every worker; the others are means over rows with a label.

    Args:
        config: the method's configuration.
        pairs: this worker's slice.
        everyone: the global batch.
        prototypes: the memory; None in epochs without prototype losses.

    Reconstruction: terms and weights of the paper are unknown; docs/methods.md says whence ours.
    """
    instance = instance_loss(config, everyone)
    result = {"instance": Term(instance, len(everyone.rows))}
    if prototypes is None:
        return result
    for own, other in ((VISIBLE, TEXT), (TEXT, VISIBLE)):
        x, labels = pairs.features[own], pairs.labels[own]
        memory = prototypes.memories[own]
        if config.lambda1 > 0:
            within = losses.cluster_contrast(x, labels, memory.bank, temperature=memory.temperature)
            count = losses.count_valid(labels)
            result[f"{own}_prototypes"] = Term(within, count, config.lambda1 / 2)
        if config.lambda2 > 0:
            targets = cross_targets(config, pairs, prototypes, own=own, other=other)
            count = losses.count_targets(targets)
            across = cross_loss(config, x, targets, prototypes.memories[other].bank)
            result[f"{own}_to_{other}"] = Term(across, count, config.lambda2 / 2)
    return result


def instance_loss(config: Config, everyone: Pairs) -> Tensor:
    """L_ins of the global batch, see docs/methods.md."""
    settings = config.matching
    img, txt = everyone.features[VISIBLE], everyone.features[TEXT]
    if settings.instance == "itc":
        own = torch.eye(len(img), dtype=torch.bool, device=img.device)
        return losses.image_text_contrast(img, txt, own, temperature=settings.temperature)
    together = positives(settings.positives, everyone)
    if settings.instance == "multi_positive":
        return losses.image_text_contrast(img, txt, together, temperature=settings.temperature)
    return losses.distribution_matching(img, txt, together, temperature=settings.temperature)


def positives(rule: str, pairs: Pairs) -> Tensor:
    """(G, G) bool, which image belongs to which caption.

    Args:
        rule: `Matching.positives`. Pairs of one image always belong together; -1 never equals -1.
        pairs: the global batch.
    """
    same_image = pairs.rows[:, None] == pairs.rows[None, :]
    if rule == "pair":
        return same_image
    image, text_ = (
        (y[:, None] == y[None, :]) & (y != OUTLIER)[:, None]
        for y in (pairs.labels[VISIBLE], pairs.labels[TEXT])
    )
    chosen = {"image": image, "text": text_, "union": image | text_, "intersection": image & text_}
    return same_image | chosen[rule]


def cross_targets(
    config: Config, pairs: Pairs, prototypes: Prototypes, *, own: Modality, other: Modality
) -> Tensor:
    """(B, C_other) targets over the other modality's prototypes; zeros where there is none.

    The pair supplies the link: "hard" is the cluster of the pair's other side; else the clusters
    that the row's own cluster occurs with, as often as it does (docs/methods.md, L_xp).
    """
    if config.matching.targets == "hard":
        labels = pairs.labels[other]
        clusters = torch.arange(len(prototypes.memories[other].bank), device=labels.device)
        return (labels[:, None] == clusters).long()
    labels = pairs.labels[own]
    clusters, counts = (x[labels.clamp(min=0)] for x in prototypes.together[own])
    zeros = counts.new_zeros(len(labels), len(prototypes.memories[other].bank))
    return zeros.scatter_add(1, clusters, counts) * (labels != OUTLIER)[:, None]


def cross_loss(config: Config, x: Tensor, targets: Tensor, bank: Tensor) -> Tensor:
    """L_VT or L_TV: rows (B, D) against the other modality's prototypes (C, D)."""
    settings = config.matching
    loss = losses.prototype_contrast
    if settings.targets == "divergence":
        loss = losses.prototype_divergence
    return loss(
        x,
        targets,
        bank,
        temperature=settings.prototype_temperature,
        num_negatives=settings.hard_negatives,
    )


def update(
    config: Config,
    memories: Mapping[Modality, ClusterMemory],
    everyone: Pairs,
    *,
    repeats: Mapping[Modality, int],
) -> None:
    """Moves the prototypes of both modalities, in place, towards the global batch's rows.

    Called after `backward` with the features of all workers in (rank, position) order, so every
    worker applies the same update. No gradient reaches a memory.
    """
    for m, memory in memories.items():
        x, labels, most = everyone.features[m].detach(), everyone.labels[m], repeats.get(m)
        if config.memory.update == "hardest":
            labels, most = hardest_only(x, labels, memory.bank), 1
        memory.update(x, labels, most=most)


def hardest_only(x: Tensor, labels: Tensor, bank: Tensor) -> Tensor:
    """Labels (G,) in which only the row least like its prototype keeps its cluster, -1 elsewhere.

    Equal cosines keep the first row. Labels stay as they are where the bank is empty.
    """
    if not len(bank):
        return labels
    cosine = (x * bank[labels.clamp(min=0)]).sum(dim=1)
    by_cosine = torch.argsort(cosine, stable=True)
    order = by_cosine[torch.argsort(labels[by_cosine], stable=True)]
    ordered = labels[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(labels).scatter_(0, order, torch.where(first, ordered, OUTLIER))
