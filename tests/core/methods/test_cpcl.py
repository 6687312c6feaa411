"""CPCL between epochs: clustering per pair, mining, banks, plan; and its settings."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from reid_core.augmentation import Augmentation
from reid_core.method import BetweenEpochs, EpochPlan
from reid_core.methods.cpcl import METHOD, optimization, settings
from reid_core.methods.cpcl import between_epochs as cpcl
from reid_core.methods.cpcl.between_epochs import TEXT, VISIBLE
from reid_core.methods.cpcl.settings import Config
from reid_core.types import Modality

NUM_IDENTITIES, IMAGES, CAPTIONS = 8, 3, 2  # captions per image


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def config(**changes: object) -> Config:
    small = {"batch_size": 8, "instances": 2}
    return Config.model_validate({"train": small, **changes})


class World:
    """Well separated identities: three images, two captions each, a few outliers."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.identities = np.repeat(np.arange(NUM_IDENTITIES), IMAGES)
        self.owners = np.repeat(np.arange(len(self.identities)), CAPTIONS)
        centers = rng.standard_normal((2, NUM_IDENTITIES, 32))
        of_captions = self.identities[self.owners]
        self.features = {
            VISIBLE: unit(centers[0, self.identities] + 0.2 * rng.standard_normal((24, 32))),
            TEXT: unit(centers[1, of_captions] + 0.2 * rng.standard_normal((48, 32))),
        }
        self.truth = {VISIBLE: self.identities.copy(), TEXT: of_captions}
        self.labels = {m: y.copy() for m, y in self.truth.items()}
        self.labels[VISIBLE][[0, 4]] = -1  # each has captions that are clustered
        self.labels[TEXT][[10, 11, 20]] = -1  # each has an image that is clustered
        self.labels[VISIBLE][15] = -1  # image and both captions: nobody knows
        self.labels[TEXT][[30, 31]] = -1

    def begin(self, chosen: Config, *, epoch: int = 0, seed: int = 0) -> EpochPlan:
        return cpcl.begin_epoch(
            chosen,
            BetweenEpochs("train", epoch, seed, features=self.features, owners=self.owners),
            self.labels,
        )


def test_outliers_regain_their_group_unless_both_sides_are_outliers() -> None:
    world = World()
    epoch = world.begin(config())
    expected = {m: y.copy() for m, y in world.truth.items()}
    expected[VISIBLE][15], expected[TEXT][[30, 31]] = -1, -1
    for m in (VISIBLE, TEXT):
        assert np.array_equal(epoch.labels[m], expected[m])
    assert epoch.counts == {
        "visible_outliers_before_mining": 3,
        "visible_outliers_after_mining": 1,
        "text_outliers_before_mining": 5,
        "text_outliers_after_mining": 2,
        "pairs_of_outliers": 2,
    }


@pytest.mark.parametrize(
    ("sides", "visible", "text"), [("none", 3, 5), ("image", 1, 5), ("text", 3, 2), ("both", 1, 2)]
)
def test_each_side_can_be_mined_alone(sides: str, visible: int, text: int) -> None:
    counts = World().begin(config(mining={"sides": sides})).counts
    assert counts["visible_outliers_after_mining"] == visible
    assert counts["text_outliers_after_mining"] == text


@pytest.mark.parametrize("vote", ["nearest", "prototype"])
def test_the_order_of_images_and_captions_does_not_matter(vote: str) -> None:
    world, shuffled = World(), World()
    rng = np.random.default_rng(1)
    images, captions = rng.permutation(24), rng.permutation(48)
    shuffled.features = {VISIBLE: world.features[VISIBLE][images]}
    shuffled.features[TEXT] = world.features[TEXT][captions]
    shuffled.labels = {VISIBLE: world.labels[VISIBLE][images], TEXT: world.labels[TEXT][captions]}
    shuffled.owners = np.argsort(images)[world.owners[captions]]
    chosen = config(mining={"vote": vote})
    there, here = shuffled.begin(chosen), world.begin(chosen)
    assert np.array_equal(there.labels[VISIBLE], here.labels[VISIBLE][images])
    assert np.array_equal(there.labels[TEXT], here.labels[TEXT][captions])
    for m in (VISIBLE, TEXT):
        assert np.allclose(there.prototypes[m], here.prototypes[m], atol=1e-6)


def test_captions_that_disagree_about_an_image_are_outvoted() -> None:
    """Image 0's captions lie in three text clusters; two of them lead to cluster 1."""
    features = {VISIBLE: unit(np.array([[1, 0.1], [0, 1], [1, 0], [0, 1.0]]))}
    owners = np.array([0, 0, 0, 1, 2, 3])
    features[TEXT] = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    labels = {
        VISIBLE: np.array([-1, 1, 0, 1]),
        TEXT: np.array([0, 1, 2, 1, 0, 2]),  # image 1 with 1, image 2 with 0, image 3 with 2
    }
    epoch = cpcl.begin_epoch(
        config(train={"batch_size": 2}),
        BetweenEpochs("train", 0, 0, features=features, owners=owners),
        labels,
    )
    assert epoch.labels[VISIBLE].tolist() == [1, 1, 0, 1]


def test_banks_are_unit_means_over_pairs() -> None:
    world = World()
    epoch = world.begin(config(mining={"sides": "none"}))
    for m, rows in ((VISIBLE, world.features[VISIBLE]), (TEXT, world.features[TEXT])):
        for cluster in range(NUM_IDENTITIES):
            expected = unit(rows[epoch.labels[m] == cluster].mean(axis=0, keepdims=True))[0]
            assert np.allclose(epoch.prototypes[m][cluster], expected, atol=1e-6)


def test_an_image_counts_once_per_caption_in_its_prototype() -> None:
    features = {VISIBLE: np.eye(2, dtype=np.float32), TEXT: unit(np.ones((4, 2)))}
    epoch = cpcl.begin_epoch(
        config(train={"batch_size": 2}),
        BetweenEpochs("train", 0, 0, features=features, owners=np.array([0, 0, 0, 1])),
        {VISIBLE: np.zeros(2, dtype=np.int64), TEXT: np.zeros(4, dtype=np.int64)},
    )
    assert np.allclose(epoch.prototypes[VISIBLE], unit(np.array([[3.0, 1.0]])))
    assert epoch.pairs.tolist() == [[0, 0]] * 4


def test_the_plan_goes_once_through_pairs_of_an_image_and_its_caption() -> None:
    world = World()
    epoch = world.begin(config(train={"batch_size": 7}))
    assert epoch.captions is not None
    assert epoch.captions.shape == epoch.rows[VISIBLE].shape == (6, 7)
    assert len(np.unique(epoch.captions)) == 42
    assert np.array_equal(epoch.rows[VISIBLE], world.owners[epoch.captions])
    again = world.begin(config(train={"batch_size": 7}))
    assert np.array_equal(epoch.captions, again.captions)
    for change in ({"epoch": 1}, {"seed": 1}):
        other = world.begin(config(train={"batch_size": 7}), **change)
        assert not np.array_equal(epoch.captions, other.captions)


def test_pairs_of_two_outliers_can_be_left_out() -> None:
    chosen = config(mining={"leftover": "drop"}, train={"batch_size": 2})
    epoch = World().begin(chosen)
    assert sorted(epoch.captions.ravel()) == sorted(set(range(48)) - {30, 31})
    remaining = World().begin(config(train={"batch_size": 2}))
    assert len(np.unique(remaining.captions)) == 48


def test_the_pk_sampler_draws_image_clusters() -> None:
    world = World()
    epoch = world.begin(config(train={"batch_size": 8, "instances": 2, "sampler": "pk"}))
    labels = epoch.labels[VISIBLE][epoch.rows[VISIBLE]].reshape(-1, 4, 2)
    assert len(labels) == 48 // 8
    assert (labels[:, :, 0] == labels[:, :, 1]).all()
    assert all(len(set(batch[:, 0])) == 4 for batch in labels)
    assert np.array_equal(epoch.rows[VISIBLE], world.owners[epoch.captions])


def test_pairs_count_how_often_two_clusters_occur_together() -> None:
    world = World()
    epoch = world.begin(config())
    counts = np.zeros((NUM_IDENTITIES, NUM_IDENTITIES))
    np.add.at(counts, tuple(epoch.pairs.T), 1)
    expected = np.diag(np.full(NUM_IDENTITIES, 6.0))
    expected[5, 5] -= 2  # the image that nobody knows
    assert np.array_equal(counts, expected)
    assert np.allclose(
        epoch.similarity,
        (
            epoch.prototypes[VISIBLE][epoch.pairs[:, 0]] * epoch.prototypes[TEXT][epoch.pairs[:, 1]]
        ).sum(1),
    )


def test_without_a_cluster_prototypes_are_an_error_with_the_remedy() -> None:
    world = World()
    world.labels[TEXT][:] = -1
    world.labels[VISIBLE][:] = -1
    with pytest.raises(ValueError, match=r"visible.*eps.*min_samples.*prototypes_from"):
        world.begin(config())
    baseline = world.begin(config(lambda1=0, lambda2=0))
    assert baseline.prototypes[TEXT].shape == (0, 32)
    assert len(baseline.pairs) == 0
    assert len(world.begin(config(prototypes_from=1)).captions) == 6


def test_fewer_pairs_than_a_batch_is_an_error_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"48 training pairs.*batch_size=49"):
        World().begin(config(train={"batch_size": 49}))
    chosen = config(train={"batch_size": 48}, mining={"leftover": "drop"})
    with pytest.raises(ValueError, match=r"46 training pairs.*leftover=instance"):
        World().begin(chosen)


def test_given_identities_need_no_mining() -> None:
    world = World()
    world.labels = world.truth
    epoch = world.begin(config(labels="identities"))
    assert np.array_equal(epoch.labels[TEXT], world.truth[TEXT])
    assert METHOD.supervision(config(labels="identities")) == "identities"
    assert METHOD.supervision(config()) == "pairs"


# Clustering --------------------------------------------------------------------------------------


def test_identities_of_two_images_cluster_as_pairs_and_not_as_images() -> None:
    """DBSCAN asks for four samples: two images with two captions each have them."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(10), 2)
    features = unit(
        rng.standard_normal((10, 64))[identities] + 0.05 * rng.standard_normal((20, 64))
    )
    owners = np.repeat(np.arange(20), 2)
    pairs = config(clustering={"k1": 5, "k2": 2, "rows": "pairs"})
    images = config(clustering={"k1": 5, "k2": 2, "rows": "images"})
    result = cpcl.cluster(
        pairs, VISIBLE, BetweenEpochs("train", 0, 0, features={VISIBLE: features}, owners=owners)
    )
    assert np.array_equal(result, identities)
    assert (
        cpcl.cluster(
            images,
            VISIBLE,
            BetweenEpochs("train", 0, 0, features={VISIBLE: features}, owners=owners),
        )
        == -1
    ).all()


@pytest.mark.parametrize("rows", ["pairs", "images"])
def test_an_image_without_a_caption_is_an_outlier(rows: str) -> None:
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(6), 5)
    features = unit(rng.standard_normal((6, 64))[identities] + 0.05 * rng.standard_normal((30, 64)))
    owners = np.repeat(np.delete(np.arange(30), [0, 7]), 3)
    chosen = config(clustering={"k1": 15, "k2": 2, "rows": rows, "min_samples": 3})
    result = cpcl.cluster(
        chosen, VISIBLE, BetweenEpochs("train", 0, 0, features={VISIBLE: features}, owners=owners)
    )
    assert np.flatnonzero(result == -1).tolist() == [0, 7]
    assert np.array_equal(np.delete(result, [0, 7]), np.delete(identities, [0, 7]))


def test_captions_are_clustered_as_they_are() -> None:
    world = World()
    chosen = config(clustering={"k1": 6, "k2": 2})
    result = cpcl.cluster(chosen, TEXT, BetweenEpochs("train", 0, 0, features=world.features))
    assert np.array_equal(result, world.truth[TEXT])


# Settings ----------------------------------------------------------------------------------------


def test_defaults_are_those_that_docs_methods_gives() -> None:
    chosen = Config()
    assert (chosen.clustering.k1, chosen.clustering.k2) == (30, 6)
    assert (chosen.clustering.eps, chosen.clustering.min_samples) == (0.6, 4)
    assert (chosen.memory.momentum, chosen.memory.temperature) == (0.2, 0.05)
    assert (chosen.matching.temperature, chosen.matching.instance) == (0.02, "sdm")
    assert (chosen.lambda1, chosen.lambda2) == (1, 1)
    assert (chosen.train.epochs, chosen.train.batch_size, chosen.train.text_mask) == (60, 64, 0)


def test_every_field_says_that_it_is_a_reconstruction() -> None:
    measured = {"labels", "evaluate_every", "clustering", "mining", "memory", "matching", "train"}
    sections: list[type[BaseModel]] = [
        member
        for _, member in inspect.getmembers(settings, inspect.isclass)
        if issubclass(member, BaseModel) and member.__module__ == settings.__name__
    ]
    assert len(sections) == 6
    for section in sections:
        text = inspect.getdoc(section) or ""
        for name in section.model_fields.keys() - measured:
            assert f"    {name}: Reconstruction" in text, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 1e-6), (1, 2.8e-6), (4, 8.2e-6), (5, 1e-5), (32, 5.1428e-6), (59, 8.155e-9)],
)
def test_the_rate_warms_up_from_a_tenth_and_falls_to_zero(epoch: int, lr: float) -> None:
    assert optimization.learning_rate(Config(), epoch) == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train": {"epochs": 3}}, "warmup_epochs"),
        ({"prototypes_from": 60}, "prototypes_from"),
        ({"matching": {"instance": "itc", "positives": "text"}}, "positives"),
        ({"lambda2": 0, "matching": {"targets": "soft"}}, "lambda2"),
        ({"train": {"sampler": "pk", "batch_size": 10, "instances": 4}}, "multiple"),
    ],
)
def test_settings_without_effect_are_named(changes: dict, word: str) -> None:
    warnings = METHOD.check(Config.model_validate(changes))
    assert len(warnings) == 1
    assert word in warnings[0]
    assert METHOD.check(Config()) == []


def test_a_pk_batch_holds_at_least_one_cluster() -> None:
    """Otherwise the plans are empty and an epoch trains nothing."""
    with pytest.raises(ValidationError, match=r"batch_size=3 .*instances=4"):
        Config.model_validate({"train": {"sampler": "pk", "batch_size": 3, "instances": 4}})
    assert Config.model_validate({"train": {"batch_size": 3, "instances": 4}})
    assert Config.model_validate({"train": {"sampler": "pk", "batch_size": 4, "instances": 4}})


def test_a_typo_is_an_error() -> None:
    with pytest.raises(ValidationError, match="lambda_1"):
        Config.model_validate({"lambda_1": 2})


def test_what_the_machinery_asks_for() -> None:
    assert METHOD.inputs == (Modality.VISIBLE, Modality.TEXT)
    assert METHOD.stages(Config()) == ("train",)
    assert METHOD.batch_rows(Config()) == {"cpcl.train.batch_size": 64}
    uneven = config(train={"batch_size": 10, "instances": 4, "sampler": "pk"})
    assert list(METHOD.batch_rows(uneven).values()) == [8]
    views = METHOD.augmentations(Config(), Augmentation(grayscale=0.5, pad=3))
    assert views == {VISIBLE: (Augmentation(grayscale=0, pad=3),)}


def test_too_few_clusters_for_pk_are_named(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        World().begin(config(train={"batch_size": 40, "instances": 2, "sampler": "pk"}))
    assert "P=20" in caplog.text
