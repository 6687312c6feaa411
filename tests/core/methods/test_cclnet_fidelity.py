"""CCLNet's published values: rates, counts, sentences, optimizer, what stages hand on.

Epochs as the authors count them, from 1, are called n.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from reid_core import optim, sampling
from reid_core.method import BetweenEpochs, Opening
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cclnet import opening, optimization
from reid_core.methods.cclnet.settings import Config
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.pooling import AttentionPool
from reid_core.models.prompts import PromptLearner
from tests.core.cclnet_case import (
    INFRARED,
    INPUTS,
    SIZE,
    VISIBLE,
    batch_of,
    epoch_of,
    handed,
    opened,
    small_config,
    step,
)

# Optimization -------------------------------------------------------------------------------------


def authors_rate(n: int) -> float:
    """Their scheduler is stepped before epoch n = 1..120, so it stands at e = n."""
    warm = 0.01 * (1 - n / 10) + n / 10 if n < 10 else 1.0
    return 3.5e-4 * warm * 0.1 ** ((n >= 30) + (n >= 50))


def authors_prompt_rate(n: int) -> float:
    if n < 5:
        return 1e-5 + n * (3.5e-4 - 1e-5) / 5
    return 1e-6 + 0.5 * (3.5e-4 - 1e-6) * (1 + np.cos(np.pi * n / 60))


def test_schedules_take_the_authors_values_at_every_epoch():
    for n in range(1, 121):
        assert 3.5e-4 * optim.warmup_steps(n) == pytest.approx(authors_rate(n), rel=1e-12)
    settings = Config().prompts
    for n in range(1, 61):
        value = optim.warmup_cosine(
            n,
            epochs=settings.epochs,
            lr=settings.lr,
            min_lr=settings.min_lr,
            warmup_lr=settings.warmup_lr,
            warmup_epochs=settings.warmup_epochs,
        )
        assert value == pytest.approx(authors_prompt_rate(n), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "rate"),
    [(1, 3.815e-5), (9, 3.1535e-4), (10, 3.5e-4), (29, 3.5e-4), (30, 3.5e-5), (50, 3.5e-6)],
)
def test_the_rates_of_single_epochs(n, rate):
    assert authors_rate(n) == pytest.approx(rate)


def test_our_epoch_0_is_the_authors_epoch_1():
    config = Config()
    for n in range(1, 121):
        for stage in ("prepare", "align"):
            rate = optimization.learning_rate(config, stage, n - 1)
            assert rate == pytest.approx(authors_rate(n), rel=1e-9)
    for n in range(1, 61):
        rate = optimization.learning_rate(config, "prompts", n - 1)
        assert rate == pytest.approx(authors_prompt_rate(n), rel=1e-9)


def test_swapping_starts_at_their_epoch_61_with_one_percent_of_the_rate():
    assert Config().swap.start_epoch == 61 - 1
    assert authors_rate(61) == pytest.approx(3.5e-6)


def test_lengths_and_settings_are_the_published_ones():
    config = Config()
    assert (config.prepare.epochs, config.prompts.epochs, config.align.epochs) == (120, 60, 120)
    assert config.prepare == config.align
    assert (config.memory.momentum, config.memory.temperature, config.swap.keep) == (0.1, 0.05, 0.1)
    published = {"k1": 30, "k2": 6, "eps": 0.6, "min_samples": 4}
    assert config.clustering.model_dump(exclude_none=True) == published
    assert (config.smoothing, config.image_to_text, config.prompts.temperature) == (0.1, 1, 1)
    assert (config.swap.when, config.swap.order) == ("epoch", "simultaneous")


@pytest.mark.parametrize(("stage", "plain", "biases"), [("prepare", 117, 58), ("align", 122, 62)])
def test_optimizer_entries_of_resnet50(stage, plain, biases):
    with torch.device("meta"):
        encoder = ImageEncoder(backbones.load("RN50"), height=288, width=144)
        opened_stage = opening.open_stage(
            Config(),
            stage,
            Opening(backbones.load("RN50"), height=288, width=144, handed={}, seed=0),
        )
    optimizer = opened_stage.optimizer()
    groups = optimizer.param_groups
    assert type(optimizer) is torch.optim.Adam
    assert [len(group["params"]) for group in groups] == [plain, biases]
    assert [group["lr"] for group in groups] == [3.5e-4, 7e-4]
    assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4]
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.9, 0.999), 1e-8)}
    trained = sum(p.numel() for group in groups for p in group["params"])
    whole = 2 * 28_768 + 23_498_496 + 2048
    assert trained == whole + (15_021_056 if stage == "align" else 0)
    assert sum(p.numel() for p in encoder.parameters()) == whole + 15_021_056 + 2048


def test_prompt_optimizer_has_two_tensors(clip):
    groups = opened(Config(), "prompts", clip).optimizer().param_groups
    (group,) = groups
    assert [tuple(p.shape) for p in group["params"]] == [(5, 4, 64), (6, 4, 64)]
    assert (group["lr"], group["weight_decay"]) == (3.5e-4, 1e-4)


# Counts and sentences -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "identities", "batches"),
    [
        ("SYSU-MM01", (22_258, 11_909), 395, 348),
        ("RegDB", (2_060, 2_060), 206, 33),
        ("LLCM", (16_946, 13_975), 713, 265),
    ],
)
def test_iterations_of_an_epoch(name, rows, identities, batches):
    labels = {m: np.arange(n) % identities for m, n in zip(INPUTS, rows, strict=True)}
    features = {m: np.eye(3, dtype=np.float32)[y % 3] for m, y in labels.items()}
    epoch = cclnet.begin_epoch(Config(), BetweenEpochs("prepare", 0, 0, features=features), labels)
    assert {epoch.rows[m].shape for m in INPUTS} == {(batches, 4 * 16)}
    drawn = epoch.labels[VISIBLE][epoch.rows[VISIBLE]].reshape(batches, 4, 16)
    assert (drawn == drawn[:, :, :1]).all()
    assert all(len(set(row)) == 4 for row in drawn[:, :, 0].tolist())


def test_outliers_do_not_count_as_iterations():
    labels = {m: np.where(np.arange(640) < 130, np.arange(640) % 5, -1) for m in INPUTS}
    features = {m: np.eye(2, dtype=np.float32)[y % 2] for m, y in labels.items()}
    epoch = cclnet.begin_epoch(Config(), BetweenEpochs("prepare", 0, 0, features=features), labels)
    assert len(epoch.rows[VISIBLE]) == 130 // 64 + 1


def test_full_prompt_batches_of_sysu():
    visible, infrared = sampling.prompt_plan(22_258, 11_909, batch_size=128, seed=0, epoch=0)
    assert visible.shape == infrared.shape == (173, 128)
    assert len(np.unique(visible)) == visible.size
    assert len(np.unique(infrared)) == 11_909


@pytest.mark.parametrize(
    ("modality", "article", "word"), [(VISIBLE, 320, 8626), (INFRARED, 550, 22867)]
)
def test_token_ids_of_both_sentences(clip, modality, article, word):
    stage = opened(Config(), "prompts", clip)
    learner: PromptLearner = stage.module.learners[str(modality)]
    sentence = [49406, article, word, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]
    assert learner.token_ids.tolist() == sentence + [0] * 64
    assert (len(learner.prefix), learner.tokens.shape[1:], learner.eot) == (6, (4, 64), 12)


# From stage to stage ------------------------------------------------------------------------------


def test_stage_0_swaps_as_stage_2_does():
    config = small_config(swap={"start_epoch": 0})
    assert np.array_equal(epoch_of(config, "prepare").pairs, epoch_of(config, "align").pairs)


def test_nothing_is_swapped_before_the_start_epoch():
    config = small_config(swap={"start_epoch": 5})
    assert not len(epoch_of(config, "align", number=4).pairs)
    assert len(epoch_of(config, "align", number=5).pairs)


def test_stage_0_hands_on_the_labels_of_its_last_epoch_outliers_included(clip):
    config = small_config()
    stage = opening.open_stage(config, "prepare", Opening(clip, **SIZE, handed={}, seed=0))
    for number in range(2):
        epoch = epoch_of(config, "prepare", number=number)
        stage.begin_epoch(number, epoch.for_workers({}))
    past = stage.hand_on()
    assert sorted(past) == ["labels.infrared", "labels.visible"]
    assert past["labels.visible"].tolist() == epoch.labels[VISIBLE].tolist()
    assert (past["labels.visible"] == -1).sum() == 3
    prompts = opening.open_stage(config, "prompts", Opening(clip, **SIZE, handed=past, seed=0))
    assert [len(x) for x in prompts.module.anchors().values()] == [3, 4]


@pytest.mark.parametrize("name", ["prompts", "align"])
def test_later_stages_start_from_fresh_clip_weights(clip, name):
    first = opening.open_stage(small_config(), "prepare", Opening(clip, **SIZE, handed={}, seed=0))
    stages = small_config()
    first.module.train()
    epoch = epoch_of(stages, "prepare")
    first.begin_epoch(0, epoch.for_workers({}))
    step(first, batch_of(epoch), lr=0.1)
    fresh = ImageEncoder(backbones.load(backbones.SMALL, "bundled"), **SIZE).state_dict()
    assert not torch.equal(
        first.module.trunk.layer1[0].conv1.weight, fresh["trunk.layer1.0.conv1.weight"]
    )
    later = opened(stages, name, clip)
    state = later.encoder.state_dict()
    assert all(torch.equal(state[key], value) for key, value in fresh.items())


def test_text_guidance_leaves_out_the_outliers_of_stage_0(clip):
    stage, config = opened(small_config(), "align", clip), small_config()
    epoch = epoch_of(config, "align")
    stage.begin_epoch(0, epoch.for_workers({}))
    batch, given = batch_of(epoch), handed(clip)
    terms = stage.terms(stage.module.train(), batch, lambda x: x)
    for m in INPUTS:
        known = given[f"labels.{m}"][batch[m].rows] != -1
        assert int(terms[f"{m}_to_text"].count) == int(known.sum()) < 12
    given["labels.visible"].fill_(-1)
    alone = opening.open_stage(small_config(), "align", Opening(clip, **SIZE, handed=given, seed=0))
    alone.begin_epoch(0, epoch.for_workers({}))
    terms = alone.terms(alone.module.train(), batch, lambda x: x)
    assert terms["visible_to_text"].mean.item() == 0
    assert int(terms["visible_to_text"].count) == 0


@pytest.mark.parametrize(
    ("stage", "settings", "calls"),
    [
        ("prepare", {}, 0),
        ("align", {"image_to_text": 0}, 0),
        ("align", {"image_to_text": 0, "teacher": 0.5, "flip": True}, 0),
        ("align", {}, 1),
    ],
)
def test_the_attention_pool_is_called_where_texts_guide_alone(clip, stage, settings, calls):
    """Neither a step nor embedding for clustering computes it elsewhere, and nothing trains it."""
    config = small_config(**settings)
    opened_stage = opened(config, stage, clip)
    epoch, pools = epoch_of(config, stage), []
    opened_stage.begin_epoch(0, epoch.for_workers({}))
    for module in opened_stage.module.modules():
        if isinstance(module, AttentionPool):
            module.register_forward_pre_hook(lambda *_: pools.append(1))
    step(opened_stage, batch_of(epoch))
    for m in INPUTS:
        opened_stage.encoder.embed(batch_of(epoch)[m].images, m)
    assert len(pools) == calls
    groups = opened_stage.optimizer().param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    weights = {n: p for n, p in opened_stage.module.named_parameters() if "attnpool." in n}
    assert len(weights) == 9 * (1 + ("teacher" in settings))
    assert {id(p) in trained for p in weights.values()} == {bool(calls)}


def test_what_a_stage_does_not_train_stays_bit_identical(clip):
    before = deepcopy(clip.model.state_dict())
    config = small_config(prompts={"batch_size": 8})
    prepare = opening.open_stage(config, "prepare", Opening(clip, **SIZE, handed={}, seed=0))
    frozen = deepcopy(prepare.module.attnpool.state_dict())
    prepare.module.train()
    epoch = epoch_of(config, "prepare")
    prepare.begin_epoch(0, epoch.for_workers({}))
    step(prepare, batch_of(epoch))
    assert all(torch.equal(frozen[k], v) for k, v in prepare.module.attnpool.state_dict().items())
    assert not prepare.module.neck.bias.any()

    prompts = opened(config, "prompts", clip)
    encoder = deepcopy(prompts.encoder.state_dict())
    generator = torch.Generator().manual_seed(0)
    prompts.take(
        {m: torch.randn(n, 128, generator=generator) for m, n in ((VISIBLE, 21), (INFRARED, 27))}
    )
    words = {n: p.detach().clone() for n, p in prompts.module.named_parameters()}
    step(prompts, next(iter(prompts.batches(0, lambda n: slice(0, n)))))
    changed = [n for n, p in prompts.module.named_parameters() if not torch.equal(p, words[n])]
    assert changed == ["learners.visible.tokens", "learners.infrared.tokens"]
    assert all(torch.equal(encoder[k], v) for k, v in prompts.encoder.state_dict().items())

    anchors = prompts.hand_on()
    past = anchors | {k: v for k, v in handed(clip).items() if k.startswith("labels")}
    remaining = deepcopy(past)
    align = opening.open_stage(config, "align", Opening(clip, **SIZE, handed=past, seed=0))
    align.module.train()
    epoch = epoch_of(config, "align")
    align.begin_epoch(0, epoch.for_workers({}))
    step(align, batch_of(epoch))
    assert all(torch.equal(remaining[key], past[key]) for key in remaining)
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())
