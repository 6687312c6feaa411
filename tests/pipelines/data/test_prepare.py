"""What training is told of a checked data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.prepare import Prepared
from pipelines.errors import UserError
from reid_core.types import OUTLIER, Modality, Split
from tests.pipelines import small_runs

BOTH = (Modality.VISIBLE, Modality.INFRARED)


@pytest.fixture(scope="module")
def prepared(trees: Path) -> Prepared:
    return small_runs.prepare_data(small_runs.make_config("cclnet", trees))


def with_tracklets(prepared: Prepared, every: int) -> Prepared:
    """Every so manyth infrared image has no pid, but a tracklet, which two of those share."""
    samples = list(prepared.train.samples)
    for number, row in enumerate(prepared.train.rows(Modality.INFRARED)[::every]):
        samples[row] = replace(samples[row], pid=OUTLIER, tracklet=700 + number // 2)
    return replace(prepared, train=Split(tuple(samples)))


def test_identities_are_known_within_a_modality_or_else_its_tracklets(prepared: Prepared) -> None:
    classes = with_tracklets(prepared, 1).given("within", BOTH)
    assert classes is not None
    infrared, visible = classes[Modality.INFRARED], classes[Modality.VISIBLE]
    assert infrared.tolist() == (np.arange(len(infrared)) // 2).tolist()
    pids = prepared.pids(BOTH)[Modality.VISIBLE]
    assert visible.tolist() == np.unique(pids, return_inverse=True)[1].tolist()
    assert prepared.given("none", BOTH) is None


def test_a_modality_with_tracklets_in_part_is_refused_by_name(prepared: Prepared) -> None:
    with pytest.raises(UserError, match="a pid, or a tracklet, of every infrared image"):
        with_tracklets(prepared, 2).given("within", BOTH)
