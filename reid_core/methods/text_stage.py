"""Stages that learn texts against frozen image features: what CCLNet's and CSDN's share.

Shapes: B rows of a worker's slice, G of the global batch, E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid_core import losses, optim
from reid_core.methods.sections import TextStage
from reid_core.types import Term


def optimizer(settings: TextStage, module: nn.Module) -> torch.optim.Optimizer:
    """Adam with coupled decay of everything, biases too."""
    return optim.adam_per_tensor(
        module.named_parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        bias_lr_factor=1,
    )


def learning_rate(settings: TextStage, epoch: int) -> float:
    """Base learning rate at `epoch` of the schedule, from 0."""
    return optim.warmup_cosine(
        epoch,
        epochs=settings.epochs,
        lr=settings.lr,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_epochs=settings.warmup_epochs,
    )


@dataclass(frozen=True)
class Side:
    """Images or texts of a contrast.

    Attributes:
        own_rows: (B, E) this worker's rows.
        everyone: (G, E) those of the global batch.
        labels: (G,) their classes.
    """

    own_rows: Tensor
    everyone: Tensor
    labels: Tensor


def contrast(images: Side, texts: Side, labels: Tensor, *, temperature: float) -> list[Term]:
    """SC(image, text) and SC(text, image) of this worker's rows against the global batch.

    Args:
        images, texts: as many rows of both.
        labels: (B,) classes of this worker's rows.
        temperature: divides the products.

    Reference: CCLNet, stage 1; CSDN, stages 1 and 2.
    """
    return [
        Term(
            losses.supervised_contrast(
                own.own_rows, other.everyone, labels, other.labels, temperature=temperature
            ),
            len(labels),
        )
        for own, other in ((images, texts), (texts, images))
    ]
