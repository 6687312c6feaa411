"""A small CSDN run in pieces: a stage, one step on several workers, and what a step moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.method import Opening
from reid_core.methods.csdn import opening
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.models import backbones
from reid_core.stage import CachedStage, Stage, StreamedStage, Terms

SIZE = {"height": 64, "width": 32}
IDENTITIES = {m: np.repeat(np.arange(6), 4) for m in INPUTS}
VISIBLE, INFRARED = INPUTS


def rows(num: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def open_stage(config: Config, name: str, clip: backbones.Backbone) -> StreamedStage | CachedStage:
    handed = {f"texts.{m}": rows(6, 128, seed=i) for i, m in enumerate(INPUTS)}
    handed["fused"] = rows(6, 128, seed=5)
    return opening.open_stage(
        config, name, Opening(clip, **SIZE, identities=IDENTITIES, handed=handed, seed=3)
    )


def total(terms: Terms) -> Tensor:
    return torch.stack([term.weight * term.mean for term in terms.values()]).sum()


Step = Callable[[int, Callable[[Tensor], Tensor]], Terms]


def over_workers(step: Step, world: int) -> Terms:
    """Terms of `world` workers put together as the machinery does: means weighted by counts.

    `step(rank, gather)` is one worker's; its gather is answered with what all workers send.
    """
    sent: list[list[Tensor]] = []
    for rank in range(world):
        sent.append([])
        step(rank, lambda x, box=sent[rank]: box.append(x) or torch.cat([x] * world))
    parts = []
    for rank in range(world):
        answers: Iterator[Tensor] = (torch.cat(calls) for calls in zip(*sent, strict=True))
        parts.append(step(rank, lambda x, answers=answers: next(answers)))
    combined = {}
    for name, term in parts[0].items():
        counts = [float(part[name].count) for part in parts]
        mean = sum(part[name].mean * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
        combined[name] = type(term)(mean, int(sum(counts)), term.weight)
    return combined


def assert_same_step(one: Terms, several: Terms, leaves: list[Tensor]) -> None:
    """Equal losses and equal gradients."""
    assert one.keys() == several.keys()
    for name in one:
        torch.testing.assert_close(several[name].mean, one[name].mean, msg=name)
    for expected, result in zip(
        torch.autograd.grad(total(one), leaves, retain_graph=True),
        torch.autograd.grad(total(several), leaves),
        strict=True,
    ):
        scale = float(expected.abs().max())
        torch.testing.assert_close(result / scale, expected / scale, rtol=1e-4, atol=1e-5)


def changed(stage: Stage, step: Callable[[], Terms], watched: dict[str, nn.Module]) -> set[str]:
    """Names of parameters that two optimizer steps moved, by module."""
    tensors = {
        f"{place}.{name}": p
        for place, module in watched.items()
        for name, p in module.named_parameters()
    }
    before = {name: p.detach().clone() for name, p in tensors.items()}
    optimizer = stage.optimizer()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        total(step()).backward()
        optimizer.step()
    return {name for name, p in tensors.items() if not torch.equal(p, before[name])}
