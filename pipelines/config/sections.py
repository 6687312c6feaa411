"""Sections of a configuration that say what is seen and by what: data, model, augmentation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from pipelines.storage.shards import location
from reid_core.augmentation import Augmentation
from reid_core.datasets import LAYOUTS
from reid_core.models.options import Options
from reid_core.types import MAX_MEGAPIXELS


class Section(BaseModel):
    """A group of settings that refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def named(null: str = "") -> BeforeValidator:
    """Refuses "" as a name; what null means, if it is allowed, has to be said with null."""

    def check(text: object) -> object:
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"names nothing{null and f'; write null for {null}'}")
        return text

    return BeforeValidator(check)


class DataConfig(Section):
    """Where the images are.

    Attributes:
        kind: layout of the tree, a key of `reid_core.datasets.LAYOUTS`.
        trial: which of RegDB's ten divisions, 1 to 10; "all" trains a model for each of them.
        root: folder that holds it, visible under the same path on every node; or the URI
            (s3://..., gs://...) of a converted data set, with kind=manifest.
        fit: which identities are trained on. The published protocols train on train and val
            together; "train" keeps val apart, for choosing settings.
        max_unreadable: share of images that may be broken. Broken images are named and left out;
            more than this stops the run before training.
        max_megapixels: an image with more pixels is refused by its header, before it is decoded.
        cache_bytes: of decoded images that every node keeps in its temporary folder while a run
            lasts, so that an epoch does not decode what the last one did; the rest is decoded as it
            comes. The default holds SYSU-MM01 at 288x144, test images too; 0 keeps none.
        extra_roots: folders outside the root, or URIs as s3://bucket, that rows of a manifest may
            name images in.
        allow_http: whether rows of a manifest may name images by http(s). Every node then fetches
            what the manifest says; never from the machine itself or its link.
        allow_shared_identities: train although identities, or images, are also measured. Scores
            then say nothing about identities that were never seen.
    """

    kind: str = "sysu"
    root: Annotated[Path, named()]
    trial: int | Literal["all"] = 1
    fit: Literal["train+val", "train"] = "train+val"
    max_unreadable: float = Field(0.001, ge=0, le=1)
    max_megapixels: float = Field(MAX_MEGAPIXELS, gt=0, le=178)  # above it Pillow refuses itself
    cache_bytes: int = Field(7 * 2**30, ge=0)
    extra_roots: tuple[Annotated[Path, named()], ...] = ()
    allow_http: bool = False
    allow_shared_identities: bool = False

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in LAYOUTS:
            raise ValueError(f"unknown layout; choose one of {', '.join(LAYOUTS)}")
        return kind

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        """Checkpoints keep it, and are read from other folders."""
        return root if "://" in location(root) else root.absolute()

    @field_validator("extra_roots")
    @classmethod
    def _all_absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root if "://" in location(root) else root.absolute() for root in roots)

    @field_serializer("root")
    def _written(self, root: Path) -> str:
        return location(root)

    @field_serializer("extra_roots")
    def _all_written(self, roots: tuple[Path, ...]) -> list[str]:
        return [location(root) for root in roots]

    @field_validator("trial", mode="before")
    @classmethod
    def _is_a_trial(cls, trial: object) -> object:
        if trial not in ("all", *range(1, 11)):
            raise ValueError('choose a number from 1 to 10, or "all"')
        return trial

    @model_validator(mode="after")
    def _has_trials(self) -> DataConfig:
        if self.trial == "all" and not LAYOUTS[self.kind].has_trials:
            raise ValueError(
                f"trial=all is for data.kind=regdb; {self.kind} has no divisions: data.trial=1"
            )
        return self


class ModelConfig(Section):
    """The pre-trained model that everything starts from.

    Attributes:
        name: an open_clip model, "timm/<model>", "transreid-ssl/...", "solider/...",
            "luperson/...", or one of the small ones, "crossreid-small" and "crossreid-small-vit".
        pretrained: a tag of open_clip or timm, "hf-hub:owner/name", the path of a local file,
            "bundled" for the small models that ship with the package, or null for random weights.
        height, width: image size in pixels.
        pixels: mean and deviation that images are normalized with: "weights" those that the weights
            were trained with, "imagenet" ImageNet's, "half" one half for both; null takes
            ImageNet's for CLIP's ResNets, as CCLNet and CSDN do, and the weights' for all others.
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

    name: Annotated[str, named()] = "RN50"
    pretrained: Annotated[str | None, named("random weights")] = "openai"
    height: int = Field(288, ge=32)
    width: int = Field(144, ge=16)
    pixels: Literal["imagenet", "weights", "half"] | None = None
    pool: Literal["gem", "class", "mean", "attention"] | None = None
    patch_stride: int | None = Field(None, ge=1)
    stem_blocks: int = Field(0, ge=0)
    drop_path: float = Field(0.0, ge=0, lt=1)
    layer_decay: float = Field(1.0, gt=0, le=1)
    freeze_patches: bool = False
    lora_rank: int = Field(0, ge=0)

    @field_validator("pretrained")
    @classmethod
    def _absolute(cls, pretrained: str | None) -> str | None:
        """A file's path: workers, and later commands, have working directories of their own."""
        path = Path(os.path.expanduser(pretrained or ""))  # which raises nothing
        is_path = bool(path.suffix) or len(path.parts) > 1  # a tag is neither
        return str(path.absolute()) if is_path and path.is_file() else pretrained

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
        erase_area: range of the rectangle's share of the image, also of those that are relit.
        erase_aspect: range of the rectangle's height over width, also of those that are relit.
        erase_fill: its color, RGB; the default is ImageNet's mean, 0 after normalization.
        mix: probability that one random mixture of the channels is written into all three; 0.5 in
            RLE.
        relight: probability that rectangles are made brighter or darker, channel by channel; 0.5 in
            RLE.
    """

    grayscale: float = Field(0.5, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    pad: int = Field(10, ge=0)
    erase: float = Field(0.5, ge=0, le=1)
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    erase_fill: tuple[int, int, int] = (124, 116, 104)
    mix: float = Field(0.0, ge=0, le=1)
    relight: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _in_range(self) -> AugmentationConfig:
        self.options()
        return self

    def options(self) -> Augmentation:
        """As the transforms take it."""
        return Augmentation(**self.model_dump())
