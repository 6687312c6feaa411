"""What CCLNet can be told beyond its paper: pairs named otherwise, votes, views, a teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from reid_core import optim
from reid_core.augmentation import Augmentation
from reid_core.knn.search import nearest
from reid_core.memory import ClusterMemory
from reid_core.method import BetweenEpochs
from reid_core.methods import mutual_agreement
from reid_core.methods.cclnet import METHOD, opening
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cclnet.settings import Config
from reid_core.methods.cclnet.stages import image_terms
from reid_core.methods.refinement import Refined, refined
from reid_core.methods.sections import Refinement
from reid_core.models import backbones
from reid_core.models.encoders import Features
from tests.core.cclnet_case import (
    INFRARED,
    INPUTS,
    SIZE,
    VISIBLE,
    batch_of,
    epoch_of,
    opened,
    small_config,
    step,
)


def world(num_clusters: int = 8, each: int = 8, gap: float = 0.6):
    """The same identities in both modalities with a shift between them, as clusters in order."""
    rng = np.random.default_rng(0)
    centers, shift = rng.normal(size=(num_clusters, 32)), rng.normal(size=32)
    labels = np.repeat(np.arange(num_clusters), each)
    features = {}
    for m, amount in ((VISIBLE, 0.0), (INFRARED, gap)):
        x = centers[labels] + amount * shift + 0.2 * rng.normal(size=(len(labels), 32))
        features[m] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return features, dict.fromkeys(INPUTS, labels)


@pytest.mark.parametrize(
    "method",
    [
        "hungarian",
        "mutual",
        "scaled",
        "transport",
        "joint",
        "both",
        "either",
        "consistent",
        "proposed",
    ],
)
def test_every_matcher_finds_evident_partners(method: str) -> None:
    features, labels = world()
    config = small_config(
        matching={"method": method, "shared": True},
        swap={"start_epoch": 1},
        clustering={"k1": 8, "k2": 3, "min_samples": 3},
    )
    before, after = (
        cclnet.begin_epoch(config, BetweenEpochs("align", e, 0, features=features), labels)
        for e in (0, 1)
    )
    assert before.pairs.shape == (0, 2)
    assert after.pairs.tolist() == [[c, c] for c in range(8)]
    np.testing.assert_allclose(after.prototypes[VISIBLE], after.prototypes[INFRARED], atol=1e-6)


def test_the_guard_couples_mutual_pairs_alone_where_identities_differ() -> None:
    """Four of eight clusters have a partner; the guard couples what is mutual."""
    features, labels = world(gap=0.2)
    strangers = np.random.default_rng(1).normal(size=(4, 32))[labels[INFRARED] - 4]
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    is_other = (labels[INFRARED] >= 4)[:, None]
    features[INFRARED] = np.where(is_other, strangers, features[INFRARED]).astype(np.float32)

    def begun(guard: float, epoch: int = 0):
        config = small_config(
            matching={"shared": True, "guard": guard, "min_similarity": -1},
            swap={"start_epoch": 0},
        )
        context = BetweenEpochs("align", epoch, 0, features=features)
        return cclnet.begin_epoch(config, context, labels)

    open_, guarded = begun(0.0), begun(0.9)
    assert len(open_.pairs) == 8
    share = open_.counts["mutual_nearest"]
    assert 0.5 <= share < 0.9
    assert guarded.pairs[:4].tolist() == [[c, c] for c in range(4)]
    assert len(guarded.pairs) < 8
    assert any("different identities" in text for text in guarded.warnings)
    assert begun(0.5).pairs.tolist() == open_.pairs.tolist()
    with pytest.raises(ValidationError, match=r"swap\.when=step matches in steps"):
        Config.model_validate({"matching": {"guard": 0.4}, "swap": {"when": "step"}})


def test_a_weak_start_is_warned_of_once() -> None:
    """Five prototypes that all are nearest to one of the other side: one mutual pair of five."""
    narrow = functional.normalize(torch.eye(6)[:1] + 0.1 * torch.eye(6)[1:], dim=1)
    other = torch.cat([torch.eye(6)[:1], -torch.eye(6)[1:5]])
    counts, warnings = mutual_agreement.agreement(narrow, other, epoch=0)
    assert counts == {"mutual_nearest": 0.2}
    assert "20% of the clusters" in warnings[0]
    assert mutual_agreement.agreement(narrow, other, epoch=1) == (counts, ())
    assert mutual_agreement.agreement(narrow, narrow, epoch=0) == ({"mutual_nearest": 1.0}, ())


def test_cameras_are_taken_out_of_clusters_and_matches_not_of_prototypes() -> None:
    features, labels = world(num_clusters=8, each=8)
    cameras = {m: np.tile(np.arange(2), 32) for m in INPUTS}
    shifts = np.random.default_rng(5).normal(size=(2, 32))
    for m in INPUTS:
        rows = features[m] + 0.5 * shifts[cameras[m]]
        features[m] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    clusters = {"k1": 8, "k2": 3, "min_samples": 3}
    plain = small_config(clustering=clusters)
    config = small_config(clustering={"camera_scaling": 0.5} | clusters)
    context = BetweenEpochs("align", 0, 0, features=features, cameras=cameras)
    num = [cclnet.cluster(c, VISIBLE, context).max() + 1 for c in (plain, config)]
    assert num[1] == 8 < num[0]
    before, after = (cclnet.begin_epoch(c, context, labels) for c in (plain, config))
    for m in INPUTS:
        np.testing.assert_array_equal(before.prototypes[m], after.prototypes[m])
    with pytest.raises(ValueError, match=r"camera_scaling=0\.5 needs a camera number"):
        cclnet.cluster(config, VISIBLE, BetweenEpochs("align", 0, 0, features=features))


def test_matches_are_of_features_without_their_cameras() -> None:
    """Three cameras of either modality with casts of their own: plain prototypes match wrongly."""
    rng = np.random.default_rng(2)
    centers, truth = rng.normal(size=(12, 24)), np.repeat(np.arange(12), 12)
    features, labels, cameras = {}, {}, {}
    for m in INPUTS:
        seen_by = rng.integers(0, 3, size=12)  # mostly one camera saw an identity
        cameras[m] = np.where(rng.random(144) < 0.8, seen_by[truth], rng.integers(0, 3, 144))
        rows = centers[truth] + 4 * rng.normal(size=(3, 24))[cameras[m]]
        features[m] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        labels[m] = truth
    context = BetweenEpochs("align", 0, 0, features=features, cameras=cameras)

    def right(**matched: float) -> int:
        config = small_config(matching=matched, swap={"start_epoch": 0})
        return int((np.diff(cclnet.begin_epoch(config, context, labels).pairs) == 0).sum())

    assert right(camera_scaling=0) > right()
    assert right(camera_scaling=1) > right()


def test_only_the_assignment_can_match_in_every_step() -> None:
    with pytest.raises(ValidationError, match=r"swap\.when=step goes with hungarian alone"):
        Config.model_validate({"matching": {"method": "joint"}, "swap": {"when": "step"}})


def test_identities_within_a_modality_are_numbered_without_the_other_one() -> None:
    features, labels = world()
    config = small_config(labels="within", swap={"start_epoch": 0}, matching={"shared": True})
    other = labels | {INFRARED: (labels[INFRARED] + 3) % 8 * 5 + 2}
    epoch = cclnet.begin_epoch(config, BetweenEpochs("align", 0, 0, features=features), other)
    assert sorted(set(epoch.labels[INFRARED])) == list(range(8))
    matched = {int(a): int(b) for a, b in epoch.pairs}
    for row in range(0, 64, 8):
        assert matched[epoch.labels[VISIBLE][row]] == epoch.labels[INFRARED][row]


def test_votes_reach_the_loss_with_their_rows() -> None:
    features, labels = world()
    labels = {m: y.copy() for m, y in labels.items()}
    labels[VISIBLE][:2] = 5  # two rows of another cluster
    settings = Refinement(labels="voted", weights=True, neighbors=6)
    config = small_config(refine=settings.model_dump())
    epoch = cclnet.begin_epoch(config, BetweenEpochs("align", 0, 0, features=features), labels)
    votes = Refined.of(epoch.arrays, VISIBLE, torch.device("cpu"))
    assert votes is not None
    rows = torch.arange(64)
    targets = votes.targets(rows, torch.from_numpy(labels[VISIBLE]), 8, settings)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    # of six neighbors two are in 5, which has ten rows, and four in 0, which has six
    vote = (2 / 14) / (2 / 14 + 4 / 8)
    assert targets[0, 5].item() == pytest.approx(0.7 + 0.3 * vote)
    assert targets[0, 0].item() == pytest.approx(0.3 * (1 - vote))
    assert votes.weights[0] < 0.05 < 0.9 < votes.weights[20]
    assert 0 < epoch.counts["outvoted_visible"] == 2 / 64
    hard = settings.model_copy(update={"labels": "hard"})
    onehot = votes.targets(rows, torch.from_numpy(labels[VISIBLE]), 8, hard)
    np.testing.assert_array_equal(onehot.numpy(), np.eye(8)[labels[VISIBLE]])


def test_a_trusting_vote_is_the_hard_loss_and_two_equal_views_are_one() -> None:
    torch.manual_seed(0)
    settings = Refinement(labels="voted", weights=True, neighbors=4, hard_share=1, sharpness=0)
    config = small_config(refine=settings.model_dump())
    x = {m: torch.randn(12, 16) for m in INPUTS}
    labels = {m: torch.arange(12) % 8 for m in INPUTS}
    rows = {m: torch.arange(12) for m in INPUTS}
    arrays: dict[str, np.ndarray] = {}
    for m in INPUTS:
        unit = functional.normalize(x[m], dim=1).numpy()
        arrays |= refined(settings, m, unit, labels[m].numpy(), search=nearest)[0]
    votes = {m: Refined.of(arrays, m, torch.device("cpu")) for m in INPUTS}
    memories = {
        m: ClusterMemory(
            functional.normalize(torch.randn(8, 16), dim=1), momentum=0.1, temperature=0.05
        )
        for m in INPUTS
    }

    hard = dict.fromkeys(INPUTS)

    def total(features, y, r, votes=hard):
        wrapped = {m: Features(f, f, f) for m, f in features.items()}
        result = image_terms(config, wrapped, y, memories, rows=r, guidance=None, refined=votes)
        return sum(term.mean for term in result.values())

    plain = total(x, labels, rows)
    torch.testing.assert_close(total(x, labels, rows, votes), plain)
    twice = [{m: v.repeat_interleave(2, dim=0) for m, v in of.items()} for of in (x, labels, rows)]
    torch.testing.assert_close(total(*twice), plain)


def test_views_are_the_papers_and_the_default_is_cclnets() -> None:
    base = Augmentation(grayscale=0.5, pad=3)
    plain = METHOD.augmentations(Config(), base)
    assert plain[VISIBLE] == (base,)
    assert [view.grayscale for view in plain[INFRARED]] == [0]
    two = METHOD.augmentations(
        Config.model_validate({"views": {"visible": 2, "jitter": 0.5}}), base
    )
    assert [(v.grayscale, v.channels, v.jitter) for v in two[VISIBLE]] == [
        (0, "keep", 0),
        (0, "exchange", 0.5),
    ]
    assert [(v.grayscale, v.channels, v.jitter) for v in two[INFRARED]] == [(0, "adapt", 0)]
    one = METHOD.augmentations(Config.model_validate({"views": {"channels": "adapt"}}), base)
    assert [(v.grayscale, v.channels) for v in one[VISIBLE]] == [(0, "adapt")]
    assert [(v.grayscale, v.channels) for v in one[INFRARED]] == [(0, "keep")]


def test_a_teacher_follows_slowly_and_is_what_embeds(clip: backbones.Backbone) -> None:
    config = small_config(image_to_text=0, teacher=0.75)
    stage = opened(config, "align", clip)
    epoch = epoch_of(config, "align")
    stage.begin_epoch(0, epoch.for_workers({}))
    stage.module.train()
    assert not stage.module.teacher.training
    before = {n: x.clone() for n, x in stage.module.teacher.state_dict().items()}
    step(stage, batch_of(epoch), lr=1e-2)
    student = stage.module.student.state_dict()
    name = next(n for n in before if n.endswith("conv1.weight"))
    expected = 0.75 * before[name] + 0.25 * student[name]
    torch.testing.assert_close(stage.module.teacher.state_dict()[name], expected)
    stage.update(lambda x: x)  # a batch in parts updates the memory more often than the weights
    torch.testing.assert_close(stage.module.teacher.state_dict()[name], expected)
    images = batch_of(epoch)[VISIBLE].images
    stage.module.eval()
    loaded = opening.load_encoder(config, clip, **SIZE, state=stage.module.state_dict())
    torch.testing.assert_close(loaded.embed(images, VISIBLE), stage.encoder.embed(images, VISIBLE))
    assert (loaded.embed(images, VISIBLE) != stage.module.student.embed(images, VISIBLE)).any()


def test_mirrored_descriptors_are_of_the_teacher(clip: backbones.Backbone) -> None:
    plain, mirrored = (
        opened(small_config(image_to_text=0, teacher=0.5, flip=flip), "align", clip)
        for flip in (False, True)
    )
    for stage in (plain, mirrored):
        stage.module.eval()
    images = torch.randint(0, 256, (5, 3, *SIZE.values())).to(torch.uint8)
    both = [plain.encoder.embed(x, VISIBLE) for x in (images, images.flip(-1))]
    expected = functional.normalize(both[0] + both[1], dim=1)
    torch.testing.assert_close(mirrored.encoder.embed(images, VISIBLE), expected)
    state = mirrored.module.state_dict()
    assert list(state) == list(plain.module.state_dict())  # so either opens the other's weights
    loaded = opening.load_encoder(mirrored.config, clip, **SIZE, state=state)
    torch.testing.assert_close(loaded.embed(images, VISIBLE), expected)


def test_two_views_of_a_row_share_its_label_and_both_move_the_bank(
    clip: backbones.Backbone,
) -> None:
    config = small_config(image_to_text=0, views={"visible": 2}, swap={"when": "never"})
    stage = opened(config, "align", clip)
    epoch = epoch_of(config, "align")
    stage.begin_epoch(0, epoch.for_workers({}))
    batch = batch_of(epoch)
    twice = batch[VISIBLE].images.repeat_interleave(2, dim=0)
    doubled = type(batch[VISIBLE])(twice, batch[VISIBLE].rows, batch[VISIBLE].labels)
    step(stage, batch | {VISIBLE: doubled})
    x, labels = stage._seen
    assert x[VISIBLE].shape[:2] == (len(labels[VISIBLE]), 2)
    # every view of a class moves its prototype, in the order in which they stand
    memory = ClusterMemory(torch.tensor(epoch.prototypes[VISIBLE]), momentum=0.1, temperature=0.05)
    memory.update(x[VISIBLE].flatten(0, 1), batch[VISIBLE].labels.repeat_interleave(2))
    torch.testing.assert_close(stage._memories[VISIBLE].bank, memory.bank)


def test_the_rate_falls_within_the_coupled_epochs() -> None:
    factors = [optim.coupled_steps(e, epochs=12, start_epoch=6, share=0.5) for e in range(12)]
    np.testing.assert_allclose(factors, [1] * 9 + [0.1] * 3)
    short = [optim.coupled_steps(e, epochs=6, start_epoch=0, share=2 / 3) for e in range(6)]
    np.testing.assert_allclose(short, [1, 1, 1, 1, 0.1, 0.1])


def test_the_guard_and_the_logged_share_see_centered_prototypes_where_matches_do() -> None:
    features, labels = world(num_clusters=40, gap=12.0)
    config = small_config(matching={"centered": True, "guard": 0.9}, swap={"start_epoch": 0})
    context = BetweenEpochs("align", 0, 0, features=features)
    epoch = cclnet.begin_epoch(config, context, labels)
    assert epoch.counts[mutual_agreement.COUNT] == 1.0
    assert len(epoch.pairs) == 40
    assert not [x for x in epoch.warnings if "guard" in x]
    plain = cclnet.begin_epoch(small_config(swap={"start_epoch": 0}), context, labels)
    assert plain.counts[mutual_agreement.COUNT] < 0.9
    with pytest.raises(ValueError, match="images, which are not centered"):
        METHOD.check(small_config(matching={"centered": True, "method": "joint"}))
