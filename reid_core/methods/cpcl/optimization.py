"""How CPCL is optimized."""

from __future__ import annotations

import torch
from torch import nn

from reid_core import optim
from reid_core.methods.cpcl.settings import Config


def optimizer(config: Config, module: nn.Module) -> torch.optim.Optimizer:
    """Adam over everything, as IRRA."""
    settings = config.train
    return optim.adam_per_tensor(
        module.named_parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        bias_weight_decay=0.0,
        eps=settings.eps,
    )


def learning_rate(config: Config, epoch: int) -> float:
    """Base learning rate of an epoch, from 0: warm-up from a tenth, then a cosine to 0."""
    settings = config.train
    warmup = settings.warmup_epochs
    if epoch < warmup:
        return settings.lr * optim.warmup_steps(
            epoch, warmup_epochs=warmup, warmup_factor=0.1, milestones=()
        )
    return settings.lr * optim.cosine(epoch - warmup, epochs=settings.epochs - warmup)
