"""What the weights of a checkpoint learned their numbers with, and no weight tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.config.sections import ModelConfig
from pipelines.runs.records import State
from reid_core.models import backbones
from reid_core.models.backbones import Backbone
from reid_core.models.weight_files import Pixels


@dataclass(frozen=True)
class Learned:
    """Which pixels and which activation; None is what the first weights say.

    Attributes:
        pixels: mean and deviation that images were normalized with.
        quick_gelu: whether transformers have QuickGELU.
    """

    pixels: Pixels | None = None
    quick_gelu: bool | None = None

    @classmethod
    def of(cls, state: State) -> Learned:
        """What a checkpoint says; older ones say less."""
        pixels = Pixels(*state["pixels"]) if "pixels" in state else None
        return cls(pixels, state.get("quick_gelu"))

    def load(self, model: ModelConfig, pretrained: str | None) -> Backbone:
        """The model, with these weights, made for what was learned.

        Raises:
            ValueError: see `backbones.load`.
        """
        backbone = backbones.load(
            model.name,
            pretrained,
            quick_gelu=self.quick_gelu,
            options=model.options(),
            tagged=True,
        )
        return backbone if self.pixels is None else replace(backbone, pixels=self.pixels)
