"""What a run carries from stage to stage and through an interruption."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipelines.config.run import RunConfig
from pipelines.runs import checkpoint
from pipelines.runs.records import ProgressState, Scores, ScoreTable


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
        handed: what finished stages handed on, by name, and is still read.
        scores: per row of the summary, the headline scores.
        table, chance: all protocols of the last evaluation; Rank-1 of a random ranking.
        selected: best mAP so far on the identities that select an epoch.
    """

    stage: str = ""
    epoch: int = -1
    handed: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    table: ScoreTable = field(default_factory=dict)
    chance: float | None = None
    selected: float = -1.0

    def state_dict(self) -> ProgressState:
        """Plain values and tensors."""
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "handed": self.handed,
            "scores": self.scores,
            "table": self.table,
            "chance": self.chance,
            "selected": self.selected,
        }

    def without_handed(self, beginning: str) -> Progress:
        """The same without what was handed on under names that begin so."""
        left = {name: x for name, x in self.handed.items() if not name.startswith(beginning)}
        return replace(self, handed=left)

    @classmethod
    def from_state(cls, state: ProgressState) -> Progress:
        """The inverse of `state_dict`."""
        progress = cls(**state)
        return replace(progress, handed=dict(state["handed"]), scores=dict(state["scores"]))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Progress:
        """That of a checkpoint."""
        return cls.from_state(checkpoint.load_to_go_on_from(folder / checkpoint.STATE)["progress"])


def is_over(config: RunConfig, progress: Progress) -> bool:
    """Whether all epochs of all stages are finished."""
    return checkpoint.is_last(config, progress.stage, progress.epoch)
