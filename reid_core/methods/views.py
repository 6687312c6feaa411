"""What images look like in training: one view or two of a visible image, with channel operations.

Reference: the second visible view of CAJ, ADCA, PGM, N-ULC and BMIL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reid_core.transforms import Augmentation
from reid_core.types import Modality


class Views(BaseModel):
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

    model_config = ConfigDict(extra="forbid", frozen=True)

    visible: Literal[1, 2] = 1
    channels: Literal["keep", "exchange", "adapt"] = "keep"
    jitter: float = Field(0.0, ge=0, le=0.5)
    infrared_jitter: float = Field(0.0, ge=0, le=0.5)


def augmentations(views: Views, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """Per modality one augmentation for each view of an image; infrared has no colors to lose."""
    plain = replace(base, grayscale=0.0)
    infrared = replace(plain, jitter=views.infrared_jitter)
    if views.visible == 2:
        second = replace(plain, channels="exchange", jitter=views.jitter)
        return {
            Modality.VISIBLE: (plain, second),
            Modality.INFRARED: (replace(infrared, channels="adapt"),),
        }
    if views.channels == "keep":
        visible = replace(base, jitter=views.jitter)
    else:
        visible = replace(plain, channels=views.channels, jitter=views.jitter)
    return {Modality.VISIBLE: (visible,), Modality.INFRARED: (infrared,)}
