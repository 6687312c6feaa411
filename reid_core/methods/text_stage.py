"""Stages that learn texts against frozen image features: what CCLNet's and CSDN's share.

Shapes: B rows of a worker's slice, G of the global batch, E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reid_core import losses, optim
from reid_core.types import Term


class TextStage(BaseModel):
    """Optimisation of a stage that learns texts: Adam, a linear warm-up, then a cosine.

    Attributes:
        epochs: of the stage.
        batch_size: image features in a global batch, per modality.
        lr: learning rate after the warm-up.
        min_lr: at the end of the cosine.
        weight_decay: of all parameters.
        warmup_epochs: in which the rate rises from `warmup_lr` to `lr`.
        warmup_lr: at the start.
        temperature: divides the products before the softmax.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(3e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: int = Field(5, ge=0)
    warmup_lr: float = Field(1e-5, gt=0)
    temperature: float = Field(1.0, gt=0)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam with coupled decay of everything, biases too."""
        return optim.adam_per_tensor(
            module.named_parameters(), lr=self.lr, weight_decay=self.weight_decay, bias_lr_factor=1
        )

    def learning_rate(self, epoch: int) -> float:
        """Base learning rate at `epoch` of the schedule, from 0."""
        return optim.warmup_cosine(
            epoch,
            epochs=self.epochs,
            lr=self.lr,
            min_lr=self.min_lr,
            warmup_lr=self.warmup_lr,
            warmup_epochs=self.warmup_epochs,
        )


@dataclass(frozen=True)
class Side:
    """Images or texts of a contrast.

    Attributes:
        mine: (B, E) this worker's rows.
        everyone: (G, E) those of the global batch.
        labels: (G,) their classes.
    """

    mine: Tensor
    everyone: Tensor
    labels: Tensor


def contrast(images: Side, texts: Side, mine: Tensor, *, temperature: float) -> list[Term]:
    """SC(image, text) and SC(text, image) of this worker's rows against the global batch.

    Args:
        images, texts: as many rows of both.
        mine: (B,) classes of this worker's rows.
        temperature: divides the products.

    Reference: CCLNet, stage 1; CSDN, stages 1 and 2.
    """
    return [
        Term(
            losses.supervised_contrast(
                own.mine, other.everyone, mine, other.labels, temperature=temperature
            ),
            len(mine),
        )
        for own, other in ((images, texts), (texts, images))
    ]
