"""Optimizers and learning-rate schedules of the papers.

A schedule is a pure function of the epoch; `set_lr` writes its value into the optimizer, so a
resumed run needs no scheduler state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def adam_per_tensor(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    bias_lr_factor: float = 2.0,
    bias_weight_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Adam:
    """Adam with coupled L2 decay in which biases learn faster.

    The reference makes one group per tensor; tensors of equal settings share one here, which
    takes the same steps and lets torch fuse them.

    Args:
        named_parameters: (name, parameter) as `named_parameters()` gives them; those that need
            no gradient are left out.
        lr: of everything but biases.
        weight_decay: of everything but biases.
        bias_lr_factor: times `lr` for names that contain "bias".
        bias_weight_decay: of those; None = as everything else.
        betas: shares of the old moments in a step.
        eps: added to the root of the second moment; 1e-3 damps small gradients a lot.

    Raises:
        ValueError: nothing to train.

    Reference: CCLNet, stages 0 and 2 (lr 3.5e-4, weight decay 5e-4, biases x2);
    IRRA, for CPCL (eps 1e-3, biases x2 without decay).
    """
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    biases = {
        "params": [p for name, p in trained if "bias" in name],
        "lr_factor": bias_lr_factor,
        "weight_decay": weight_decay if bias_weight_decay is None else bias_weight_decay,
    }
    rest = {"params": [p for name, p in trained if "bias" not in name], "lr_factor": 1.0}
    groups = by_rate([rest, biases])
    optimizer = Adam(groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
    set_lr(optimizer, lr)
    return optimizer


def adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> AdamW:
    """AdamW over all that needs a gradient; vectors (biases, norms) and scalars do not decay.

    Raises:
        ValueError: nothing to train.

    Reconstruction: no paper's choice; short runs from a small start learn better with it.
    """
    trained = [p for _, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(by_rate(groups), lr=lr, betas=betas, fused=True)


def sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float
) -> SGD:
    """Gradient descent with momentum 0.9 and coupled decay of all that needs a gradient.

    Raises:
        ValueError: nothing to train.

    Reference: TransReID-SSL, its unsupervised training of vision transformers.
    """
    groups = by_rate([{"params": [p for _, p in named_parameters if p.requires_grad]}])
    return SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=True)


def by_rate(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of an optimizer, split where parameters say that they learn at another rate.

    Args:
        groups: with "params" and, unless it is 1, "lr_factor". A parameter may carry a factor of
            its own, see `models.adaptation.set_lr_factors`; both are multiplied.

    Returns:
        Groups with a factor each, in the order in which their first parameters stand.

    Raises:
        ValueError: no parameter at all.
    """
    result: list[dict[str, Any]] = []
    for group in groups:
        factors: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            factors.setdefault(getattr(parameter, "lr_factor", 1.0), []).append(parameter)
        base = group.get("lr_factor", 1.0)
        result += [group | {"params": x, "lr_factor": base * own} for own, x in factors.items()]
    if not result:
        raise ValueError("no parameter needs a gradient: there is nothing to train")
    return result


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets every group to `lr` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def warmup_steps(
    epoch: int,
    *,
    warmup_epochs: int = 10,
    warmup_factor: float = 0.01,
    milestones: tuple[int, ...] = (30, 50),
    gamma: float = 0.1,
) -> float:
    """Factor of the base rate: linear warm-up, then steps.

    Args:
        epoch: e, the scheduler's count.
        warmup_epochs: the factor rises linearly from `warmup_factor` at e = 0 to 1 here.
        milestones: epochs at which the factor is multiplied by `gamma`.

    Reference: CCLNet (10; 30, 50) and CSDN, stage 3 (10; 40, 70).
    """
    done = min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0
    return (warmup_factor * (1 - done) + done) * gamma ** bisect_right(milestones, epoch)


def coupled_steps(
    epoch: int, *, epochs: int, start_epoch: int, warmup_epochs: int = 0, share: float = 2 / 3
) -> float:
    """Factor of the base rate that falls to a tenth within the coupled epochs, not before them.

    Args:
        epoch: from 0.
        epochs: of the stage.
        start_epoch: first epoch in which the modalities are coupled.
        warmup_epochs: in which the factor rises from a hundredth.
        share: of the coupled epochs that has the full rate.

    Reconstruction: ours; CCLNet's own steps are over before it couples anything.
    """
    start = min(start_epoch, epochs - 1)
    fall = start + max(1, round(share * (epochs - start)))
    return warmup_steps(epoch, warmup_epochs=warmup_epochs, milestones=(fall,))


def warmup_cosine(
    epoch: int, *, epochs: int, lr: float, min_lr: float, warmup_lr: float, warmup_epochs: int
) -> float:
    """Learning rate: linear warm-up, then the cosine that began at epoch 0.

    Reference: CCLNet, stage 1, and CSDN, stages 1 and 2 (60 epochs, 5 of them warm-up from 1e-5,
    down to 1e-6).
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    return min_lr + (lr - min_lr) * cosine(epoch, epochs=epochs)


def cosine(epoch: float, *, epochs: float) -> float:
    """Factor of the base rate: half a cosine from 1 at epoch 0 to 0 at `epochs`."""
    return 0.5 * (1 + cos(pi * epoch / epochs))
