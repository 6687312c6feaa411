"""Settings that several methods share; what they mean is done in modules that need torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _rising(epochs: tuple[int, ...]) -> tuple[int, ...]:
    if any(first > second for first, second in pairwise(epochs)):
        raise ValueError("epochs must not fall from one to the next")
    return epochs


Milestones: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0, strict=True)], ...], AfterValidator(_rising)
]
"""Epochs at which a rate falls, the first one first; none for a rate that stays."""


class Section(BaseModel):
    """Some settings of a method: no unknown key, nothing that changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Unread: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""Per key that chooses, and per choice, the keys beside it that are not read then."""

OF_AN_IMAGE_STAGE: Unread = {
    "schedule": {
        "steps": ("coupled_share",),
        "cosine": ("warmup_epochs", "milestones", "coupled_share"),
        "coupled": ("milestones",),
    },
    "optimizer": {
        "adamw": ("bias_lr_factor", "head_lr_factor"),
        "sgd": ("bias_lr_factor", "head_lr_factor", "betas"),
    },
}


def unread(section: BaseModel, path: str, keys: Iterable[str], because: str) -> list[str]:
    """A sentence on the settings that nothing reads; none where they have their defaults.

    A resumed run gives every key: only values that were changed are worth a word.

    Args:
        section: that holds them.
        path: its dotted key.
        keys: of settings; those that the section lacks are passed over.
        because: the choice that leaves them unread, as it is written.
    """
    fields = type(section).model_fields
    idle = [
        f"{path}.{key}"
        for key in keys
        if key in fields and getattr(section, key) != fields[key].default
    ]
    return [f"{', '.join(idle)}: no effect with {because}"] if idle else []


def unread_by_choice(section: BaseModel, path: str, tables: Unread) -> list[str]:
    """The sentences of `unread` on everything that the choices of a section leave unread."""
    chosen = [(key, _written(getattr(section, key)), table) for key, table in tables.items()]
    return [
        line
        for key, choice, table in chosen
        for line in unread(section, path, table.get(choice, ()), f"{path}.{key}={choice}")
    ]


def _written(value: object) -> str:
    """As a recipe says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class TextStage(Section):
    """Optimization of a stage that learns texts: Adam, a linear warm-up, then a cosine.

    Attributes:
        epochs: of the stage.
        batch_size: image features in a global batch, per modality.
        lr: learning rate after the warm-up.
        min_lr: at the end of the cosine.
        weight_decay: of all parameters.
        warmup_epochs: in which the rate rises from `warmup_lr` to `lr`.
        warmup_lr: at the start.
        temperature: divides the products before the softmax.
    """

    epochs: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(3e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: int = Field(5, ge=0)
    warmup_lr: float = Field(1e-5, gt=0)
    temperature: float = Field(1.0, gt=0)


class Refinement(Section):
    """Targets and weights of rows by their neighbors' votes; off by default.

    Attributes:
        labels: "hard" clusters, or "voted": the own cluster and what the neighbors vote for.
        weights: whether a row counts as far as the vote confirms its cluster.
        neighbors: that vote, the row itself among them.
        hard_share: of the own cluster in a voted target.
        sharpness: of the weights; higher trusts fewer rows.
    """

    labels: Literal["hard", "voted"] = "hard"
    weights: bool = False
    neighbors: int = Field(30, ge=2)
    hard_share: float = Field(0.7, ge=0, le=1)
    sharpness: float = Field(10.0, ge=0)

    @property
    def on(self) -> bool:
        """Whether neighbors have a say at all."""
        return self.labels == "voted" or self.weights


def unread_of_votes(refine: Refinement, path: str) -> list[str]:
    """The sentences of `unread` on settings of votes that are not cast, or not counted."""
    if not refine.on:
        keys = "neighbors", "hard_share", "sharpness"
        return unread(refine, path, keys, f"{path}.labels=hard and no weights")
    unweighed = () if refine.weights else ("sharpness",)
    lines = unread(refine, path, unweighed, f"{path}.weights=false")
    hard = () if refine.labels == "voted" else ("hard_share",)
    return lines + unread(refine, path, hard, f"{path}.labels=hard")


class Views(Section):
    """Views of training images.

    Attributes:
        visible: of each visible image: 1, or 2: a plain one and one with a single channel in all
            three; infrared images then have their channels adapted. Both count as rows.
        channels: of a single visible view: "keep" with the section augmentation's grayscale, or
            without that "exchange" (one channel copied to all) or "adapt" (the same with 3/4,
            gray with 1/8).
        jitter: strength of the color jitter of the second visible view, or of a single one.
        infrared_jitter: the same of infrared images.
    """

    visible: Literal[1, 2] = 1
    channels: Literal["keep", "exchange", "adapt"] = "keep"
    jitter: float = Field(0.0, ge=0, le=0.5)
    infrared_jitter: float = Field(0.0, ge=0, le=0.5)
