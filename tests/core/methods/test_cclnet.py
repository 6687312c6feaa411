"""CCLNet's edges: identities of one modality only, and settings that have no effect."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.method import BetweenEpochs, EpochPlan
from reid_core.methods.cclnet import METHOD
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cclnet.settings import Config
from tests.core.cclnet_case import INFRARED, INPUTS, VISIBLE, small_config


def with_identities(visible: list[int], infrared: list[int]) -> EpochPlan:
    """An epoch on given identities, four images of each, in the order given."""
    labels = {m: np.repeat(y, 4) for m, y in zip(INPUTS, (visible, infrared), strict=True)}
    features = {m: np.eye(9, dtype=np.float32)[y] for m, y in labels.items()}
    config = small_config(labels="identities")
    return cclnet.begin_epoch(config, BetweenEpochs("align", 0, 0, features=features), labels)


def test_identities_of_one_modality_only_are_never_drawn():
    """2 and 5 are visible only, 0 and 7 infrared only; 1, 3, 8 become 0, 1, 2 on both sides."""
    epoch = with_identities([8, 1, 2, 3, 5, -1], [0, 3, 1, 7, 8])
    assert epoch.labels[VISIBLE][::4].tolist() == [2, 0, -1, 1, -1, -1]
    assert epoch.labels[INFRARED][::4].tolist() == [-1, 1, 0, -1, 2]
    assert epoch.pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    for m in INPUTS:
        assert set(epoch.labels[m][epoch.rows[m]].ravel()) == {0, 1, 2}
        assert epoch.prototypes[m].argmax(axis=1).tolist() == [1, 3, 8]
    assert [w.partition(":")[0] for w in epoch.warnings] == [
        "4 of 7 identities were seen in one modality only"
    ]


def test_identities_of_both_keep_their_numbers_without_a_warning():
    epoch = with_identities([0, 1, 2], [2, 1, 0])
    assert epoch.labels[INFRARED][::4].tolist() == [2, 1, 0]
    assert epoch.warnings == ()


def test_nobody_in_both_modalities_is_an_error():
    with pytest.raises(ValueError, match="none of 4 identities was seen in both modalities"):
        with_identities([0, 1], [2, 3, -1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"prepare": {"epochs": 60}}, ["prepare"]),
        ({"align": {"epochs": 60}}, ["align"]),
        ({"prepare": {"epochs": 6}, "align": {"epochs": 60}}, ["prepare", "align"]),
        ({"prepare": {"epochs": 60}, "image_to_text": 0}, []),  # the stage does not run
        ({"prepare": {"epochs": 60}, "swap": {"when": "never"}}, []),
        ({"prepare": {"epochs": 60}, "labels": "identities"}, []),
    ],
)
def test_every_stage_that_is_never_coupled_is_named(changes, named):
    said = METHOD.check(Config.model_validate(changes))
    warnings = [w for w in said if "never coupled" in w]
    assert [w.rpartition(" ")[2] for w in warnings] == [f'"{name}"' for name in named]
    assert all("swap.start_epoch=60 is not reached" in w for w in warnings)
