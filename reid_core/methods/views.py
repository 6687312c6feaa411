"""What images look like in training: one view or two of a visible image, with channel operations.

Reference: the second visible view of CAJ, ADCA, PGM, N-ULC and BMIL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reid_core.methods.sections import Views
from reid_core.types import Modality

if TYPE_CHECKING:  # recipes are checked without torch
    from reid_core.augmentation import Augmentation


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
