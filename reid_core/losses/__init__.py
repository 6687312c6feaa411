"""Training losses: scalars computed from features, labels and candidates, on the input's device.

Shapes: B anchor rows, M candidate rows, C clusters or classes, D feature width.

Anchors and candidates are separate arguments, so a candidate set gathered from other workers fits
without a flag. A label of -1 marks an outlier: it never equals another -1, and its row is left out
of the mean. Where no row is left the loss is a zero that still touches the graph, so that a worker
without a valid row takes part in the backward pass. Each mean is over this call's valid rows; a
caller that averages over workers scales it by `world_size * local count / global count`, with the
count of `count_valid` or `count_targets`.
"""

from reid_core.losses.contrast import (
    cluster_contrast,
    identity_cross_entropy,
    modality_shared_enhancement,
    supervised_contrast,
)
from reid_core.losses.exclusion import exclusion
from reid_core.losses.image_text import (
    distribution_matching,
    distribution_matching_one_way,
    image_text_contrast,
    image_to_text,
)
from reid_core.losses.masking import count_targets, count_valid, in_float32
from reid_core.losses.prototypes import prototype_contrast, prototype_divergence, scored_contrast
from reid_core.losses.triplet import weighted_regularised_triplet

__all__ = [
    "cluster_contrast",
    "count_targets",
    "count_valid",
    "distribution_matching",
    "distribution_matching_one_way",
    "exclusion",
    "identity_cross_entropy",
    "image_text_contrast",
    "image_to_text",
    "in_float32",
    "modality_shared_enhancement",
    "prototype_contrast",
    "prototype_divergence",
    "scored_contrast",
    "supervised_contrast",
    "weighted_regularised_triplet",
]
