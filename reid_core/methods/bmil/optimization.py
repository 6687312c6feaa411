"""How both stages of BMIL are optimized."""

from __future__ import annotations

import torch
from torch import nn

from reid_core import optim
from reid_core.methods.bmil.settings import Config, Stage


def optimizer(config: Config, name: str, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a stage over the parameters that it trains; all learn alike."""
    stage: Stage = getattr(config, name)
    if stage.optimizer != "adam":
        make = optim.adamw if stage.optimizer == "adamw" else optim.sgd
        return make(module.named_parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
    return optim.adam_per_tensor(
        module.named_parameters(),
        lr=stage.lr,
        weight_decay=stage.weight_decay,
        bias_lr_factor=1.0,
    )


def learning_rate(config: Config, name: str, epoch: int) -> float:
    """Base learning rate of an epoch, from 0."""
    stage: Stage = getattr(config, name)
    if stage.schedule == "cosine":
        return stage.lr * optim.cosine(epoch, epochs=stage.epochs)
    return stage.lr * optim.warmup_steps(
        epoch, warmup_epochs=stage.warmup_epochs, milestones=stage.milestones
    )
