"""What a run carries from stage to stage and through an interruption."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.config import RunConfig
from reid_core.methods import METHODS
from reid_core.stage import CachedStage, Stage


class Place(NamedTuple):
    """Where a worker is: stage, epoch from 0, steps of it that were begun."""

    stage: str = "the beginning"
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"{self.stage}, epoch {self.epoch + 1}, step {self.step}"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        stage, epoch: the last finished epoch.
        handed: what finished stages handed on, by name.
        scores: per row of the summary, the headline scores.
        table, chance: all protocols of the last evaluation; Rank-1 of a random ranking.
        selected: best mAP so far on the identities that select an epoch.
    """

    stage: str = ""
    epoch: int = -1
    handed: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    chance: float | None = None
    selected: float = -1.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """The inverse of `state_dict`."""
        return cls(**{**state, "handed": dict(state["handed"]), "scores": dict(state["scores"])})


def is_over(config: RunConfig, progress: Progress) -> bool:
    """Whether all epochs of all stages are finished."""
    last = METHODS[config.method].stages(config.settings)[-1]
    epochs = getattr(config.settings, last).epochs
    return (progress.stage, progress.epoch + 1) == (last, epochs)


def restore(state: Mapping[str, Any], stage: Stage, optimizer: torch.optim.Optimizer) -> None:
    """Give a stage and its optimizer back what a checkpoint holds of them.

    Raises:
        ValueError: it is of another model; names what differs.
    """
    saved, expected = state["module"], kept(stage)
    if saved.keys() != expected.keys():
        raise ValueError(
            f"the checkpoint is of another model: missing {expected.keys() - saved.keys()}, "
            f"unexpected {saved.keys() - expected.keys()}"
        )
    stage.module.load_state_dict(saved, strict=False)
    # a copy, since torch keeps the tensors that it is given and steps change them
    optimizer.load_state_dict(copy.deepcopy(state["optimiser"]))


def kept(stage: Stage) -> dict[str, Tensor]:
    """What a checkpoint holds of a stage's module: all of it, but no frozen tower."""
    state = stage.module.state_dict()
    if not isinstance(stage, CachedStage):
        return state
    named = stage.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: x for name, x in state.items() if name not in frozen}
