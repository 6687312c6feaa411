"""BMIL between epochs: labels of both kinds, batches, rates, and which settings cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from reid_core.knn.search import nearest
from reid_core.method import BetweenEpochs
from reid_core.methods.bmil import METHOD, joint_labels, optimization
from reid_core.methods.bmil import between_epochs as bmil
from reid_core.methods.bmil.settings import Config
from tests.core.bmil_case import INPUTS, R, V, config_of, epoch_of, world


def test_half_of_the_neighbors_is_half_an_even_number() -> None:
    with pytest.raises(ValueError, match=r"bmil\.clustering\.k1=9 must be even"):
        METHOD.check(config_of(clustering={"k1": 9}))
    for free in ({"balanced": False}, {"together": "assigned"}):
        assert not METHOD.check(config_of(clustering={"k1": 9} | free))
    assert not METHOD.check(config_of(clustering={"k1": 9}, labels="identities"))


def test_batches_of_both_kinds_take_turns_and_hold_no_outlier() -> None:
    features, truth = world()
    clustering = {"k1": 8, "k2": 2, "min_samples": 3, "subset": 1}
    config, tight = config_of(), config_of(clustering=clustering | {"joint_eps": 0.15})
    epoch, strict = (
        bmil.begin_epoch(c, BetweenEpochs("joint", 0, 0, features=features), {})
        for c in (config, tight)
    )
    for m in INPUTS:
        left_out = np.flatnonzero(strict.labels[m] == -1)
        assert len(left_out)
        assert not np.isin(strict.rows[m][1::2], left_out).any()
        assert (strict.place_labels[m] >= 0).all()
    for m in INPUTS:
        assert epoch.rows[m].shape == epoch.place_labels[m].shape == (6, 12)
        assert (epoch.place_labels[m] >= 0).all()
        joint, separate = epoch.place_labels[m][1::2], epoch.place_labels[m][0::2]
        np.testing.assert_array_equal(joint, epoch.labels[m][epoch.rows[m][1::2]])
        assert separate.max() < len(epoch.arrays[f"bank.{m}"])
        # one label, one identity in this easy world
        for kind in (joint, separate):
            rows = epoch.rows[m][1::2] if kind is joint else epoch.rows[m][0::2]
            assert all(len(np.unique(truth[m][rows[kind == y]])) == 1 for y in np.unique(kind))
    assert epoch.counts["joint_clusters"] == 10
    assert epoch.counts["joint_clusters_of_both"] == 0.8
    assert len(epoch.arrays["bank.joint"]) == epoch.counts["proxies"] == 18
    assert len(epoch.pairs) == len(epoch.similarity) == 8
    intra = epoch_of(config_of(), "intra")
    assert intra.rows[V].shape == (3, 12)
    assert "bank.joint" not in intra.arrays


def test_the_balance_is_what_joins_modalities() -> None:
    """Without it a wide gap keeps every cluster within one modality."""
    features, _ = world(gap=2.0)
    shares = [
        bmil.begin_epoch(
            config_of(clustering={"k1": 8, "k2": 2, "min_samples": 3, "subset": 1, "balanced": on}),
            BetweenEpochs("joint", 0, 0, features=features),
            {},
        ).counts["joint_clusters_of_both"]
        for on in (True, False)
    ]
    assert shares == [0.8, 0.0]


def test_a_row_of_neither_part_is_in_no_batch_and_separate_and_joint_rows_differ() -> None:
    features, _ = world(each=20)
    config = config_of(clustering={"k1": 8, "k2": 2, "min_samples": 3, "subset": 0.4})
    seen = []
    for number in (0, 1):
        epoch = bmil.begin_epoch(config, BetweenEpochs("joint", number, 0, features=features), {})
        separate, joint = set(epoch.rows[V][0::2].ravel()), set(epoch.rows[V][1::2].ravel())
        assert not separate & joint
        alone, together = bmil._parts(config, BetweenEpochs("joint", number, 0), 160)
        assert separate <= set(alone)
        assert joint <= set(together)
        assert len(alone) == len(together) == 64
        seen.append(set(alone))
    assert seen[0] != seen[1]


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ValidationError, match="two parts of more than half"):
        config_of(clustering={"subset": 0.7})
    with pytest.raises(ValidationError, match="the joint stage is the method"):
        config_of(joint={"epochs": 0})
    with pytest.raises(ValueError, match="camera_aware needs a camera number"):
        epoch_of(config_of(sampling={"camera_aware": True}))
    features, _ = world()
    scattered = {
        m: functional.normalize(torch.randn(*x.shape)).numpy() for m, x in features.items()
    }
    with pytest.raises(
        ValueError, match=r"no separate cluster with visible images.*raise bmil.clustering.eps"
    ):
        bmil.begin_epoch(
            config_of(clustering={"k1": 8, "eps": 0.1, "subset": 1}),
            BetweenEpochs("intra", 0, 0, features=scattered),
            {},
        )


def test_given_identities_are_joint_labels_and_numbered_alone_as_separate_ones() -> None:
    features, truth = world()
    epoch = bmil.begin_epoch(
        config_of(labels="identities"), BetweenEpochs("joint", 0, 0, features=features), truth
    )
    np.testing.assert_array_equal(epoch.labels[R], truth[R])
    assert len(epoch.arrays["bank.joint"]) == 18
    assert epoch.arrays["proxies.visible"].tolist()[-2:] == [-1, -1]


def test_rates_are_the_published_ones() -> None:
    config = Config()
    rates = [optimization.learning_rate(config, "joint", e) for e in (0, 19, 20, 39, 40)]
    np.testing.assert_allclose(rates, [3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6])
    assert METHOD.stages(config) == ("intra", "joint")
    assert METHOD.stages(config_of(intra={"epochs": 0})) == ("joint",)
    assert METHOD.batch_rows(
        Config.model_validate({"joint": {"visible_clusters_per_batch": 4}})
    ) == {
        "bmil.intra.clusters_per_batch x instances (visible)": 128,
        "bmil.intra.clusters_per_batch x instances (infrared)": 128,
        "bmil.joint.clusters_per_batch x instances (visible)": 64,
        "bmil.joint.clusters_per_batch x instances (infrared)": 128,
    }


@pytest.mark.parametrize("together", ["assigned", "overlap", "both", "either"])
def test_paired_clusters_are_joint_labels_too(together: str) -> None:
    """An easy world: the eight identities of both modalities are one label each, two are alone."""
    features, truth = world(gap=0.6)
    clustering = {"k1": 8, "k2": 2, "min_samples": 3, "subset": 1, "together": together}
    context = BetweenEpochs("joint", 0, 0, features=features)
    epoch = bmil.begin_epoch(config_of(clustering=clustering), context, {})
    assert len(epoch.pairs) == 8
    for m in INPUTS:
        assert (epoch.labels[m] >= 0).all()
    names = {int(y): set(truth[V][epoch.labels[V] == y]) for y in np.unique(epoch.labels[V])}
    for y in np.unique(epoch.labels[R]):
        identities = set(truth[R][epoch.labels[R] == y])
        assert identities == names.get(int(y), identities & {8, 9})


def test_a_second_modality_takes_the_names_of_its_partners() -> None:
    names = joint_labels.renamed(np.array([0, 1, -1, 2, 1]), np.array([[4, 1], [0, 2]]), 5)
    assert names.tolist() == [5, 4, -1, 0, 4]


@pytest.mark.parametrize("together", ["assigned", "overlap", "both", "either"])
def test_classes_that_a_modality_knows_alone_are_paired_and_never_split(together: str) -> None:
    """Their numbers say nothing across modalities, and some rows have none."""
    features, truth = world()
    labels = {V: truth[V] * 3 + 1, R: (truth[R] + 4) % 10 * 7}
    labels[R][-3:] = -1
    clustering = {"k1": 8, "k2": 2, "min_samples": 3, "subset": 0.5, "together": together}
    config = config_of(clustering=clustering, labels="within")
    assert METHOD.check(config) == []
    assert METHOD.supervision(config) == "within"
    context = BetweenEpochs("joint", 0, 0, features=features)
    epoch = bmil.begin_epoch(config, context, labels)
    names = [{int(c): set(epoch.labels[m][labels[m] == c]) for c in labels[m]} for m in (V, R)]
    assert all(len(name) == 1 for side in names for name in side.values())
    assert names[1].pop(-1) == {-1}
    shared = [names[0][c * 3 + 1] & names[1][(c + 4) % 10 * 7] for c in range(8)]
    assert all(shared)
    assert len(epoch.pairs) == 8
    with pytest.raises(ValueError, match=r"labels=within .* bmil\.clustering\.together to"):
        METHOD.check(config_of(labels="within"))


def test_rows_vote_that_were_clustered_together() -> None:
    """Half of the visible rows for separate labels, the other half and infrared for joint ones."""
    clustering = {"k1": 8, "k2": 2, "min_samples": 3, "subset": 0.5}
    config = config_of(clustering=clustering, refine={"labels": "voted", "neighbors": 5})
    features, _ = world()
    asked: list[tuple[int, int, bool]] = []

    def search(rows, k, /, *, is_second=None):
        asked.append((len(rows), k, is_second is not None))
        return nearest(rows, k, is_second=is_second)

    context = BetweenEpochs("joint", 0, 0, features=features, search=search)
    epoch = bmil.begin_epoch(config, context, {})
    # clusters of each and of both, then a vote of each and one of both
    assert asked == [(32, 8, False), (80, 8, False), (112, 8, True),
                     (32, 5, False), (80, 5, False), (112, 6, True)]  # fmt: skip
    separate = epoch.arrays["separate.weights.visible"] > 0
    joint = epoch.arrays["joint.weights.visible"] > 0
    assert separate.sum() <= 32 < 64
    assert not (separate & joint).any()
    assert epoch.counts["joint_confidence_infrared"] > 0.5
