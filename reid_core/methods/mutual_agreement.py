"""A sign, without labels, of how right matches between two modalities can be.

The similarity of matched prototypes says nothing: wrong pairs may be as similar as right ones. The
share of clusters whose nearest prototypes of the other modality name them back does: it is .55 to
.62 where half of the matches are right at the start, .23 where a tenth are. It also falls, but
slowly, where cameras of one modality have seen other identities than those of the other: to .43
where nobody was seen by both.
"""

from __future__ import annotations

from reid_core import matching
from reid_core.matching import Prototypes

COUNT = "mutual_nearest"
WEAK = 0.3
"""Share below which a user is warned (docs/troubleshooting.md)."""


def agreement(
    visible: Prototypes, infrared: Prototypes, *, epoch: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The share for an epoch's log, and in a stage's first epoch a warning where it is low.

    Args:
        visible, infrared: (C, D) unit prototypes of clusters of one modality each.
        epoch: within the stage, from 0.
    """
    share = matching.mutual_share(visible, infrared)
    counts = {COUNT: share}
    if share >= WEAK or epoch:
        return counts, ()
    return counts, (
        f"only {share:.0%} of the clusters are mutual nearest neighbors of one of the other "
        "modality: few matches will be right, most often since the weights do not fit these "
        "images; docs/troubleshooting.md says what helps",
    )
