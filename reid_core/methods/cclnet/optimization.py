"""How the stages of CCLNet are optimized."""

from __future__ import annotations

import torch
from torch import nn

from reid_core import optim
from reid_core.methods import text_stage
from reid_core.methods.cclnet.settings import Config, ImageStage


def optimizer(config: Config, stage: str, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a stage over the parameters that it trains."""
    if stage == "prompts":
        return text_stage.optimizer(config.prompts, module)
    image: ImageStage = getattr(config, stage)
    named, rates = module.named_parameters(), {"lr": image.lr, "weight_decay": image.weight_decay}
    if image.optimizer == "sgd":
        return optim.sgd(named, **rates)
    if image.optimizer == "adamw":
        return optim.adamw(named, **rates, betas=image.betas)
    return optim.adam_per_tensor(
        named, **rates, betas=image.betas, bias_lr_factor=image.bias_lr_factor
    )


def learning_rate(config: Config, stage: str, epoch: int) -> float:
    """Base learning rate of an epoch, set before the epoch starts.

    The authors count from 1 and step their schedules before each epoch, so epoch 0 is their e = 1.
    """
    if stage == "prompts":
        return text_stage.learning_rate(config.prompts, epoch + 1)
    image: ImageStage = getattr(config, stage)
    if image.schedule == "cosine":
        return image.lr * optim.cosine(epoch, epochs=image.epochs)
    if image.schedule == "coupled":
        return image.lr * optim.coupled_steps(
            epoch,
            epochs=image.epochs,
            start_epoch=config.swap.start_epoch,
            warmup_epochs=image.warmup_epochs,
            share=image.coupled_share,
        )
    return image.lr * optim.warmup_steps(
        epoch + 1, warmup_epochs=image.warmup_epochs, milestones=image.milestones
    )
