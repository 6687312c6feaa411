"""The features that a method clusters and matches, with or without what their cameras add."""

from __future__ import annotations

from reid_core.camera_shift import without_cameras
from reid_core.knn.products import Features
from reid_core.method import BetweenEpochs
from reid_core.types import Modality


def rows_to_compare(scaling: float | None, context: BetweenEpochs, modality: Modality) -> Features:
    """A modality's features (n, D) as clusters and matches see them.

    Args:
        scaling: as in `camera_shift.without_cameras`; None keeps the features as they are.
        context: with the features and, unless they stay as they are, a camera for every row.
        modality: whose rows.

    Raises:
        ValueError: cameras are asked for and not known; names the setting.
    """
    if scaling is None:
        return context.features[modality]
    if context.cameras is None:
        raise ValueError(f"camera_scaling={scaling:g} needs a camera number for every image")
    return without_cameras(context.rows(modality), context.cameras[modality], scaling=scaling)
