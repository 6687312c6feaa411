"""What a run carries from stage to stage and through an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from reid_core.models.encoders import TwoStemEncoder
from reid_core.types import Modality


@dataclass
class Progress:
    """Where a run stands: what is handed from stage to stage, and the scores so far."""

    stage: str = ""
    epoch: int = -1
    labels: dict[Modality, Tensor] = field(default_factory=dict)
    anchors: dict[Modality, Tensor] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    chance: float = float("nan")

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return vars(self) | {
            "labels": {str(m): x for m, x in self.labels.items()},
            "anchors": {str(m): x for m, x in self.anchors.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """The inverse of `state_dict`."""
        per_modality = {
            name: {Modality(m): x for m, x in state[name].items()} for name in ("labels", "anchors")
        }
        return cls(**{**state, **per_modality})


def kept(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a module: an encoder whole, prompts without the frozen tower."""
    state = module.state_dict()
    if isinstance(module, TwoStemEncoder):
        return state
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: x for name, x in state.items() if name not in frozen}
