"""Sections of a run's configuration that say what is seen and by what: model and augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reid_core.models.backbones import Options
from reid_core.transforms import Augmentation


class Section(BaseModel):
    """A group of settings that refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The pre-trained model that everything starts from.

    Attributes:
        name: an open_clip model, "timm/<model>", "transreid-ssl/...", "solider/...",
            "luperson/...", or one of the small ones, "crossreid-small" and "crossreid-small-vit".
        pretrained: a tag of open_clip or timm, "hf-hub:owner/name", the path of a local file,
            "bundled" for the small models that ship with the package, or null for random weights.
        height, width: image size in pixels.
        pixels: mean and deviation that images are normalized with: "weights" those that the weights
            were trained with, "imagenet" ImageNet's; null takes ImageNet's for CLIP's ResNets, as
            CCLNet and CSDN do, and the weights' for all others.
        pool: what becomes of the last features: "gem" or "mean" of a map or of the patches, the
            "class" token, or the tower's own "attention" pool; null for what the family has.
        patch_stride: pixels from one patch of a transformer to the next; 12 lets patches of 16
            overlap. Null for the size of a patch.
        stem_blocks: blocks of a transformer that each modality has of its own, behind the patches.
        drop_path: share of a transformer's residual branches that training leaves out, in the last
            block; in the others less.
        layer_decay: factor on the learning rate from one block to the one before it.
        freeze_patches: keep the projection of the patches as it is.
        lora_rank: train matrices of this rank beside frozen ones of attention and MLP; 0 trains
            the whole encoder.
    """

    name: str = "RN50"
    pretrained: str | None = "openai"
    height: int = Field(288, ge=32)
    width: int = Field(144, ge=16)
    pixels: Literal["imagenet", "weights"] | None = None
    pool: Literal["gem", "class", "mean", "attention"] | None = None
    patch_stride: int | None = Field(None, ge=1)
    stem_blocks: int = Field(0, ge=0)
    drop_path: float = Field(0.0, ge=0, lt=1)
    layer_decay: float = Field(1.0, gt=0, le=1)
    freeze_patches: bool = False
    lora_rank: int = Field(0, ge=0)

    def options(self) -> Options:
        """Everything but name, weights and size, as backbones take it."""
        named = ("name", "pretrained", "height", "width")
        return Options(**self.model_dump(exclude=set(named)))


class AugmentationConfig(Section):
    """Training transforms; the values are CCLNet's.

    Attributes:
        grayscale: probability, visible images only.
        flip: probability of a horizontal flip.
        pad: black border in pixels before the random crop.
        erase: probability of erasing a rectangle.
        erase_area, erase_aspect: range of its share of the image and of its height over width.
        erase_fill: its colour, RGB; the default is ImageNet's mean, 0 after normalization.
    """

    grayscale: float = Field(0.5, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    pad: int = Field(10, ge=0)
    erase: float = Field(0.5, ge=0, le=1)
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    erase_fill: tuple[int, int, int] = (124, 116, 104)

    def options(self) -> Augmentation:
        """As the transforms take it."""
        return Augmentation(**self.model_dump())
