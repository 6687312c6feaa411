"""What CSDN can be told, and how it is optimised. Published values are the defaults.

`profile` and `variant` choose the defaults of the keys below them; a key that is given wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from reid_core import optim
from reid_core.methods.text_stage import TextStage
from reid_core.types import Modality

INPUTS = (Modality.VISIBLE, Modality.INFRARED)
Labels = Mapping[Modality, np.ndarray]

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
_PURPOSES = ("tokens.visible", "tokens.infrared", "pairs", "fusion", "dropout", "heads", "images")
_HEADS = ("encoder.gem", "encoder.neck", "classifier", "projected_")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageStage(_Section):
    """Optimisation of stage 3.

    Attributes:
        epochs: of the stage.
        identities_per_batch: identities in a global batch, the same in both modalities.
        instances: images of each of them, per modality.
        batches_per_epoch: steps of an epoch; None for max(n) // (identities x instances) + 1.
        optimizer: "adam", "adamw" with decoupled weight decay, or "sgd" with momentum 0.9.
        lr: highest learning rate.
        weight_decay: of all parameters.
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
    milestones: tuple[int, ...] = (40, 70)
    evaluate_every: int = Field(5, ge=0)


class Config(_Section):
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
        pool: stages 1 and 2 go through "all" images, or through one random "sample" of them,
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


def num_people(identities: Labels) -> int:
    """C, the number of classes over both modalities."""
    return max(int(y.max(initial=-1)) for y in identities.values()) + 1


def is_guided(config: Config) -> bool:
    """Whether texts guide the images of stage 3."""
    return config.anchors != "none" and (config.lambda2 > 0 or config.lambda3 > 0)


def seed_of(seed: int, purpose: str) -> int:
    """Seed of everything random with one purpose; no two of them share draws."""
    return seed * 8 + _PURPOSES.index(purpose)


def optimizer(config: Config, stage: str, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a stage over the parameters that it trains.

    Reference: CSDN, all stages: Adam with coupled decay of everything, biases and norms too.
    """
    if stage != "images":
        text: TextStage = getattr(config, stage)
        return text.optimizer(module)
    image = config.images
    if image.optimizer != "adam":
        optimizers = {"adamw": optim.adamw, "sgd": optim.sgd}
        make = optimizers[image.optimizer]
        return make(module.named_parameters(), lr=image.lr, weight_decay=image.weight_decay)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if not name.startswith(_HEADS)]},
        {
            "params": [p for name, p in trained if name.startswith(_HEADS)],
            "lr_factor": image.head_lr_factor,
        },
    ]
    adam = torch.optim.Adam(
        optim.by_rate(groups), lr=image.lr, weight_decay=image.weight_decay, fused=True
    )
    optim.set_lr(adam, image.lr)
    return adam


def learning_rate(config: Config, stage: str, epoch: int) -> float:
    """Base learning rate of an epoch, set before the epoch starts."""
    if stage != "images":
        text: TextStage = getattr(config, stage)
        return text.learning_rate(epoch)
    image = config.images
    if image.schedule == "cosine":
        return image.lr * optim.cosine(epoch, epochs=image.epochs)
    return image.lr * optim.warmup_steps(
        epoch, warmup_epochs=image.warmup_epochs, milestones=image.milestones
    )
