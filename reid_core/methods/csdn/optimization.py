"""How the stages of CSDN are optimized."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reid_core import optim
from reid_core.methods import text_stage
from reid_core.methods.csdn.settings import Config
from reid_core.methods.sections import TextStage

_HEADS = ("encoder.gem", "encoder.neck", "classifier", "projected_")


def optimizer(config: Config, stage: str, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a stage over the parameters that it trains.

    Reference: CSDN, all stages: Adam with coupled decay of everything, biases and norms too.
    """
    if stage != "images":
        text: TextStage = getattr(config, stage)
        return text_stage.optimizer(text, module)
    image = config.images
    if image.optimizer != "adam":
        make = optim.adamw if image.optimizer == "adamw" else optim.sgd
        return make(module.named_parameters(), lr=image.lr, weight_decay=image.weight_decay)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if not name.startswith(_HEADS)]},
        {
            "params": [p for name, p in trained if name.startswith(_HEADS)],
            "lr_factor": image.head_lr_factor,
        },
    ]
    adam = torch.optim.Adam(
        optim.by_rate(groups), lr=image.lr, weight_decay=image.weight_decay, fused=True
    )
    optim.set_lr(adam, image.lr)
    return adam


def learning_rate(config: Config, stage: str, epoch: int) -> float:
    """Base learning rate of an epoch, set before the epoch starts."""
    if stage != "images":
        text: TextStage = getattr(config, stage)
        return text_stage.learning_rate(text, epoch)
    image = config.images
    if image.schedule == "cosine":
        return image.lr * optim.cosine(epoch, epochs=image.epochs)
    return image.lr * optim.warmup_steps(
        epoch, warmup_epochs=image.warmup_epochs, milestones=image.milestones
    )
