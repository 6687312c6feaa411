"""What a run carries from stage to stage and through an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reid_core.stage import CachedStage, Stage


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


def kept(stage: Stage) -> dict[str, Tensor]:
    """What a checkpoint holds of a stage's module: all of it, but no frozen tower."""
    state = stage.module.state_dict()
    if not isinstance(stage, CachedStage):
        return state
    named = stage.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: x for name, x in state.items() if name not in frozen}
