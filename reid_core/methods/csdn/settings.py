"""What CSDN can be told. Published values are the defaults.

`profile` and `variant` choose the defaults of the keys below them; a key that is given wins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from reid_core.method import Labels, Supervision
from reid_core.methods.sections import (
    OF_AN_IMAGE_STAGE,
    Milestones,
    Section,
    TextStage,
    unread,
    unread_by_choice,
)
from reid_core.types import Modality

if TYPE_CHECKING:  # a recipe is checked without torch
    from reid_core.augmentation import Augmentation

INPUTS = (Modality.VISIBLE, Modality.INFRARED)

PROFILES: dict[str, dict[str, Any]] = {
    "clean": {
        "stem_relu": "all",
        "pairing": "separate",
        "pool": "all",
        "anchor_dropout": False,
        "triplet": "stable",
    },
    "reference": {
        "stem_relu": "last",
        "pairing": "joint",
        "pool": "sample",
        "anchor_dropout": True,
        "triplet": "reference",
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "arxiv": {"msel": 0.0, "flip_test": False},
    "head": {"msel": 1.0, "flip_test": True},
}
_PURPOSES = (
    "tokens.visible", "tokens.infrared", "pairs", "fusion", "dropout", "heads", "images",
    "fusion pairs",
)  # fmt: skip


class ImageStage(Section):
    """Optimization of stage 3.

    Attributes:
        epochs: of the stage.
        identities_per_batch: identities in a global batch, the same in both modalities.
        instances: images of each of them, per modality.
        batches_per_epoch: steps of an epoch; None for max(n) // (identities x instances) + 1.
        optimizer: "adam", "adamw" with decoupled weight decay, or "sgd" with momentum 0.9.
        lr: highest learning rate.
        weight_decay: of all parameters; adamw's of matrices alone.
        head_lr_factor: times the rate for GeM's exponent, both necks and both classifiers; adam
            only.
        schedule: "steps" after a warm-up, or a "cosine" from the first epoch to 0.
        warmup_epochs: in which the rate rises from a hundredth; steps only.
        milestones: epochs at which the rate falls to a tenth; steps only.
        evaluate_every: epochs between evaluations; 0 only after the last one.
    """

    epochs: int = Field(120, ge=1)
    identities_per_batch: int = Field(8, ge=2)
    instances: int = Field(4, ge=2)
    batches_per_epoch: int | None = Field(None, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    head_lr_factor: float = Field(2.0, gt=0)
    schedule: Literal["steps", "cosine"] = "steps"
    warmup_epochs: int = Field(10, ge=0)
    milestones: Milestones = (40, 70)
    evaluate_every: int = Field(5, ge=0)


class Config(Section):
    """Everything CSDN can be told.

    Attributes:
        profile: "reference" repeats what the public code does, quirks included, and fits its
            released weights; "clean" repairs it. Decides `stem_relu` to `triplet`, see
            docs/methods.md.
        variant: of the public code: "arxiv", on which the published scores seem to rest, or
            "head" with `msel` and `flip_test`.
        anchors: what guides images in stage 3: the texts of both modalities in "fusion"; their
            "mean"; each modality its "own"; one "shared" set of prompts; or "none", no text.
        query: the modality whose text asks in the fusion, and that the answer is added to.
        lambda1: weight of both weighted regularised triplets.
        lambda2: weight of the cross entropy of visible images against the anchors.
        lambda3: weight of the cross entropy of infrared images against the anchors.
        msel: weight of both modality-shared enhancement losses.
        flip_test: whether descriptors also hold the mirrored image's.
        stem_relu: rectifiers of the stems: "all" three of CLIP's, or the "last" alone.
        pairing: stage 1 contrasts each modality with its own prompts ("separate") or all images
            with all prompts ("joint"), which cannot tell the two prompt sets apart.
        pool: stages 1 and 2 go through "all" images, or through a random "sample" of them each,
            which misses about one RegDB identity in thirteen.
        anchor_dropout: whether the anchors are taken with dropout on.
        triplet: weights by a "stable" softmax, or with the "reference" code's epsilon, which
            loses the negatives once distances pass about 18.
        dropout: of the fusion, while it is trained.
        prompts, fusion, images: the three stages.
    """

    profile: Literal["clean", "reference"] = "clean"
    variant: Literal["arxiv", "head"] = "arxiv"
    anchors: Literal["none", "shared", "own", "mean", "fusion"] = "fusion"
    query: Literal["visible", "infrared"] = "visible"
    lambda1: float = Field(0.15, ge=0)
    lambda2: float = Field(0.05, ge=0)
    lambda3: float = Field(0.10, ge=0)
    msel: float = Field(0.0, ge=0)
    flip_test: bool = False
    stem_relu: Literal["all", "last"] = "all"
    pairing: Literal["separate", "joint"] = "separate"
    pool: Literal["all", "sample"] = "all"
    anchor_dropout: bool = False
    triplet: Literal["stable", "reference"] = "stable"
    dropout: float = Field(0.1, ge=0, lt=1)
    prompts: TextStage = TextStage()
    fusion: TextStage = TextStage()
    images: ImageStage = ImageStage()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Defaults of the profile and the variant; an unknown one is reported by its field."""
        if not isinstance(given, dict):
            return given
        profile = PROFILES.get(str(given.get("profile", "clean")), {})
        variant = VARIANTS.get(str(given.get("variant", "arxiv")), {})
        return {**profile, **variant, **given}


def num_identities(identities: Labels) -> int:
    """C, the number of classes over both modalities."""
    return max(int(y.max(initial=-1)) for y in identities.values()) + 1


def is_guided(config: Config) -> bool:
    """Whether texts guide the images of stage 3."""
    return config.anchors != "none" and (config.lambda2 > 0 or config.lambda3 > 0)


def seed_of(seed: int, purpose: str) -> int:
    """Seed of everything random with one purpose; no two of them share draws."""
    return seed * 8 + _PURPOSES.index(purpose)


def supervision(config: Config) -> Supervision:
    """What it is told about the training identities: who they are."""
    return "identities"


def needs_text(config: Config) -> bool:
    """Always: without guidance too, half of the descriptor lies in the space of the texts."""
    return True


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    if not is_guided(config):
        return ("images",)
    if config.anchors == "fusion":
        return ("prompts", "fusion", "images")
    return ("prompts", "images")


def batch_rows(config: Config) -> dict[str, int]:
    """Rows of a global batch per modality, under the keys that decide it."""
    result = {
        f"csdn.{name}.batch_size": getattr(config, name).batch_size for name in stages(config)[:-1]
    }
    rows = config.images.identities_per_batch * config.images.instances
    return {**result, "csdn.images.identities_per_batch x instances": rows}


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """Two views of a visible image, the second with exchanged channels, and one of an infrared.

    Reference: CSDN, stage 3, views. Colors are lost by channel operations, not by grayscale.
    """
    base = replace(base, grayscale=0.0)
    return {
        Modality.VISIBLE: (base, replace(base, channels="exchange")),
        Modality.INFRARED: (replace(base, channels="adapt"),),
    }


def check(config: Config) -> list[str]:
    """Warnings about settings that have no effect, or that do not go together."""
    idle = ["lambda2", "lambda3"] if config.anchors == "none" else []
    idle += [] if config.anchors == "fusion" else ["query", "dropout"]
    result = unread(config, "csdn", idle, f"csdn.anchors={config.anchors}")
    result += unread_by_choice(config.images, "csdn.images", OF_AN_IMAGE_STAGE)
    if config.profile == "reference" and config.stem_relu == "all":
        result.append("csdn.stem_relu=all: the released weights were trained with the last alone")
    chosen = {**PROFILES[config.profile], **VARIANTS[config.variant]}
    other = {key: getattr(config, key) for key, value in chosen.items()}
    if other := {key: value for key, value in other.items() if value != chosen[key]}:
        result.append(
            f"csdn.profile={config.profile}, csdn.variant={config.variant}: "
            f"{', '.join(f'{key}={value}' for key, value in other.items())} are set apart from it; "
            "a configuration that a run has written names every key"
        )
    return result
