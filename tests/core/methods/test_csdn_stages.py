"""CSDN within an epoch: losses against their formulas, workers, and which tensors learn when."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core import losses
from reid_core.method import BetweenEpochs, Opening
from reid_core.methods.csdn import METHOD, opening
from reid_core.methods.csdn import between_epochs as csdn
from reid_core.methods.csdn.images import Descriptor, Outputs, build_encoder, image_terms
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.methods.csdn.stages import Fusing, MixedBatch, PairBatch, Prompting, anchors
from reid_core.models import backbones
from reid_core.models.encoders import Features
from reid_core.models.prompts import Chosen
from reid_core.stage import Stage, Terms
from reid_core.types import Batch, Modality

SIZE = {"height": 64, "width": 32}
IDENTITIES = {m: np.repeat(np.arange(6), 4) for m in INPUTS}
VISIBLE, INFRARED = INPUTS


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    return backbones.load(backbones.SMALL, seed=1)


def rows(num: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def random_images(num: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 64, 32), generator=generator).to(torch.uint8)


def open_stage(config: Config, name: str, clip: backbones.Backbone) -> Stage:
    handed = {f"texts.{m}": rows(6, 128, seed=i) for i, m in enumerate(INPUTS)}
    handed["fused"] = rows(6, 128, seed=5)
    return opening.open_stage(
        config, name, Opening(clip, **SIZE, identities=IDENTITIES, handed=handed, seed=3)
    )


def total(terms: Terms) -> Tensor:
    return torch.stack([term.weight * term.mean for term in terms.values()]).sum()


Step = Callable[[int, Callable[[Tensor], Tensor]], Terms]


def over_workers(step: Step, world: int) -> Terms:
    """Terms of `world` workers put together as the machinery does: means weighted by counts.

    `step(rank, gather)` is one worker's; its gather is answered with what all workers send.
    """
    sent: list[list[Tensor]] = []
    for rank in range(world):
        sent.append([])
        step(rank, lambda x, box=sent[rank]: box.append(x) or torch.cat([x] * world))
    parts = []
    for rank in range(world):
        answers: Iterator[Tensor] = (torch.cat(calls) for calls in zip(*sent, strict=True))
        parts.append(step(rank, lambda x, answers=answers: next(answers)))
    combined = {}
    for name, term in parts[0].items():
        counts = [float(part[name].count) for part in parts]
        mean = sum(part[name].mean * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
        combined[name] = type(term)(mean, int(sum(counts)), term.weight)
    return combined


def assert_same_step(one: Terms, several: Terms, leaves: list[Tensor]) -> None:
    """Equal losses and equal gradients."""
    assert one.keys() == several.keys()
    for name in one:
        torch.testing.assert_close(several[name].mean, one[name].mean, msg=name)
    for expected, result in zip(
        torch.autograd.grad(total(one), leaves, retain_graph=True),
        torch.autograd.grad(total(several), leaves),
        strict=True,
    ):
        scale = float(expected.abs().max())
        torch.testing.assert_close(result / scale, expected / scale, rtol=1e-4, atol=1e-5)


# Stage 1 -----------------------------------------------------------------------------------------


def prompting(config: Config, clip: backbones.Backbone) -> tuple[Prompting, PairBatch]:
    stage = open_stage(config, "prompts", clip)
    assert isinstance(stage, Prompting)
    stage.take({m: rows(24, 128, seed=10 + i) for i, m in enumerate(INPUTS)})
    return stage, next(stage.batches(0, lambda n: slice(0, n)))


@pytest.mark.parametrize(("pairing", "moves"), [("joint", False), ("separate", True)])
def test_only_separate_pairing_tells_the_two_sets_of_words_apart(small, pairing, moves) -> None:
    stage, batch = prompting(Config(pairing=pairing, prompts={"batch_size": 8}), small)
    learners = stage.module.learners
    before = total(stage.terms(stage.module, batch, lambda x: x)).item()
    with torch.no_grad():
        visible, infrared = (learners[str(m)].tokens for m in INPUTS)
        remaining = visible.clone()
        visible.copy_(infrared)
        infrared.copy_(remaining)
    after = total(stage.terms(stage.module, batch, lambda x: x)).item()
    assert (abs(after - before) > 1e-3) == moves
    if not moves:
        assert after == pytest.approx(before, rel=1e-6)


def test_stage_one_loss_is_the_written_formula(small) -> None:
    for pairing, groups in (("separate", [[VISIBLE], [INFRARED]]), ("joint", [list(INPUTS)])):
        stage, batch = prompting(Config(pairing=pairing, prompts={"batch_size": 8}), small)
        identities = torch.tensor(IDENTITIES[VISIBLE][batch.rows[VISIBLE]])
        texts = stage.module(Chosen.of(identities.numpy()))
        expected = 0.0
        for group in groups:
            a = torch.cat([stage._images[m][batch.rows[m]] for m in group])
            b, y = torch.cat([texts[m] for m in group]), identities.repeat(len(group))
            expected += losses.supervised_contrast(a, b, y, y).item()
            expected += losses.supervised_contrast(b, a, y, y).item()
        result = total(stage.terms(stage.module, batch, lambda x: x)).item()
        assert result == pytest.approx(expected, rel=1e-5)


def test_shared_words_are_one_set_for_both_modalities(small) -> None:
    stage, batch = prompting(Config(anchors="shared", prompts={"batch_size": 8}), small)
    stage.terms(stage.module, batch, lambda x: x)
    texts = stage.hand_on()
    assert torch.equal(texts["texts.visible"], texts["texts.infrared"])
    assert [name for name, p in stage.module.named_parameters() if p.requires_grad] == [
        "learners.visible.tokens"
    ]


@pytest.mark.parametrize("pairing", ["joint", "separate"])
def test_stage_one_does_not_depend_on_the_number_of_workers(small, pairing) -> None:
    stage, whole = prompting(Config(pairing=pairing, prompts={"batch_size": 8}), small)
    leaves = [p for p in stage.module.parameters() if p.requires_grad]

    def step(rank: int, gather: Callable[[Tensor], Tensor]) -> Terms:
        part = next(stage.batches(0, lambda n: slice(4 * rank, 4 * rank + 4)))
        return stage.terms(stage.module, part, gather)

    one = stage.terms(stage.module, whole, lambda x: x)
    assert_same_step(one, over_workers(step, 2), leaves)


# Stage 2 -----------------------------------------------------------------------------------------


def fusing(config: Config, clip: backbones.Backbone) -> Fusing:
    stage = open_stage(config, "fusion", clip)
    assert isinstance(stage, Fusing)
    stage.take({m: rows(24, 128, seed=10 + i) for i, m in enumerate(INPUTS)})
    return stage


def test_stage_two_does_not_depend_on_the_number_of_workers(small) -> None:
    stage = fusing(Config(fusion={"batch_size": 4}), small)

    def share(rank: int, world: int) -> MixedBatch:
        return next(stage.batches(2, lambda n: slice(n * rank // world, n * (rank + 1) // world)))

    def step(rank: int, gather: Callable[[Tensor], Tensor]) -> Terms:
        return stage.terms(stage.module, share(rank, 2), gather)

    assert torch.equal(torch.cat([share(0, 2).keep, share(1, 2).keep]), share(0, 1).keep)
    one = stage.terms(stage.module, share(0, 1), lambda x: x)
    leaves = [p for name, p in stage.module.named_parameters() if name.startswith(("v", "o"))]
    assert_same_step(one, over_workers(step, 2), leaves)


def test_batches_mix_the_modalities_evenly_over_the_epoch(small) -> None:
    stage = fusing(Config(fusion={"batch_size": 4}, prompts={"batch_size": 99}), small)
    drawn = torch.cat([batch.rows for batch in stage.batches(0, lambda n: slice(0, n))])
    assert int((drawn < 24).sum()) == len(drawn) // 2 == 28
    assert set(drawn.tolist()) >= set(range(24))


def test_the_query_is_the_text_that_is_added_to(small) -> None:
    for query, own, other in (("visible", 0, 1), ("infrared", 1, 0)):
        stage = fusing(Config(query=query), small)
        fused = stage.module(rows(6, 128, seed=own), rows(6, 128, seed=other))
        torch.testing.assert_close(stage.hand_on()["fused"], fused.detach())


def test_anchors_are_repeatable_with_and_without_dropout(small) -> None:
    plain, dropped = (fusing(Config(anchor_dropout=on), small).hand_on() for on in (False, True))
    again = fusing(Config(anchor_dropout=True), small).hand_on()
    assert torch.equal(dropped["fused"], again["fused"])
    assert not torch.equal(dropped["fused"], plain["fused"])


def test_each_switch_chooses_its_anchors() -> None:
    handed = {"texts.visible": rows(3, 4, seed=0), "texts.infrared": rows(3, 4, seed=1)}
    handed["fused"] = rows(3, 4, seed=2)
    own = anchors(Config(anchors="own"), handed)
    assert torch.equal(own[VISIBLE], handed["texts.visible"])
    assert torch.equal(own[INFRARED], handed["texts.infrared"])
    mean = anchors(Config(anchors="mean"), handed)
    assert torch.equal(mean[VISIBLE], mean[INFRARED])
    torch.testing.assert_close(mean[VISIBLE], (own[VISIBLE] + own[INFRARED]) / 2)
    fused = anchors(Config(), handed)
    assert torch.equal(fused[VISIBLE], handed["fused"])
    assert torch.equal(fused[INFRARED], handed["fused"])


# Stage 3 -----------------------------------------------------------------------------------------


def outputs(num: int) -> tuple[Outputs, list[Tensor]]:
    """As of `num` visible rows with two views and `num` infrared ones; 5 identities."""
    leaves = [
        (rows(3 * num, width, seed=seed) * scale).requires_grad_()
        for seed, (width, scale) in enumerate(((16, 0.3), (16, 1), (8, 0.3), (5, 1), (5, 1)))
    ]
    return Outputs(Features(*leaves[:3]), *leaves[3:]), leaves


def part_of(whole: Outputs, rank: int, size: int) -> Outputs:
    """The share of one of two workers, each with `size` rows per modality."""

    def cut(x: Tensor) -> Tensor:
        visible, infrared = x[: 4 * size], x[4 * size :]
        return torch.cat([visible.chunk(2)[rank], infrared.chunk(2)[rank]])

    features = whole.features
    cuts = [cut(x) for x in (features.pooled, features.neck, features.projected)]
    return Outputs(Features(*cuts), cut(whole.scores), cut(whole.projected_scores))


def test_stage_three_loss_is_the_written_formula() -> None:
    config = Config(profile="reference", variant="head")
    result, _ = outputs(8)
    y, guides = torch.arange(4).repeat_interleave(2), rows(5, 8, seed=9)
    terms = image_terms(
        config, result, y, y, guides=dict.fromkeys(INPUTS, guides), gather=lambda x: x
    )
    identities = torch.cat([y.repeat_interleave(2), y])
    expected = F.cross_entropy(result.scores, identities)
    expected += F.cross_entropy(result.projected_scores, identities)
    g = result.features.projected
    expected += 0.05 * F.cross_entropy(g[0:16:2] @ guides.T, y)  # not the exchanged views
    expected += 0.10 * F.cross_entropy(g[16:] @ guides.T, y)
    for x in (result.features.pooled, g):
        triplet = losses.weighted_regularised_triplet(x, identities, stable=False)
        expected += 0.15 * triplet
        expected += losses.modality_shared_enhancement(
            torch.cat([x[0:16:2], x[16:]]), torch.cat([y, y]), torch.arange(2).repeat_interleave(8)
        )
    assert total(terms).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_published_variant_has_no_enhancement_and_no_text_without_anchors() -> None:
    result, _ = outputs(8)
    y = torch.arange(4).repeat_interleave(2)
    terms = image_terms(Config(), result, y, y, guides=None, gather=lambda x: x)
    assert set(terms) == {
        "identity", "projected_identity", "triplet", "projected_triplet",
    }  # fmt: skip


def test_stage_three_does_not_depend_on_the_number_of_workers() -> None:
    config = Config(variant="head")
    whole, leaves = outputs(8)
    y = torch.arange(4).repeat_interleave(2)
    guides = {m: rows(5, 8, seed=9 + i) for i, m in enumerate(INPUTS)}

    def step(rank: int, gather: Callable[[Tensor], Tensor]) -> Terms:
        own = y[4 * rank : 4 * rank + 4]
        return image_terms(config, part_of(whole, rank, 4), own, own, guides=guides, gather=gather)

    one = image_terms(config, whole, y, y, guides=guides, gather=lambda x: x)
    several = over_workers(step, 2)
    leaves.pop(1)  # the neck reaches the loss through the scores
    assert_same_step(one, several, leaves)


# What learns when --------------------------------------------------------------------------------


def changed(stage: Stage, step: Callable[[], Terms], watched: dict[str, nn.Module]) -> set[str]:
    """Names of parameters that two optimizer steps moved, by module."""
    tensors = {
        f"{place}.{name}": p
        for place, module in watched.items()
        for name, p in module.named_parameters()
    }
    before = {name: p.detach().clone() for name, p in tensors.items()}
    optimizer = stage.optimizer()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        total(step()).backward()
        optimizer.step()
    return {name for name, p in tensors.items() if not torch.equal(p, before[name])}


def test_stage_one_moves_the_words_alone(small) -> None:
    stage, batch = prompting(Config(prompts={"batch_size": 8}), small)
    moved = changed(
        stage,
        lambda: stage.terms(stage.module, batch, lambda x: x),
        {"module": stage.module, "image": stage.encoder, "text": small.text},
    )
    assert moved == {f"module.learners.{m}.tokens" for m in INPUTS}


def test_stage_two_moves_the_fusion_alone(small) -> None:
    stage = fusing(Config(fusion={"batch_size": 4}), small)
    batch = next(stage.batches(0, lambda n: slice(0, n)))
    texts = [x.clone() for x in stage._texts]
    moved = changed(
        stage,
        lambda: stage.terms(stage.module, batch, lambda x: x),
        {"module": stage.module, "image": stage.encoder},
    )
    # weight decay moves query and key too, though their gradient is zero
    assert moved == {f"module.{name}" for name, _ in stage.module.named_parameters()}
    assert all(torch.equal(x, y) for x, y in zip(texts, stage._texts, strict=True))


def test_stage_three_moves_the_whole_image_side_and_no_text(small) -> None:
    stage = open_stage(Config(variant="head"), "images", small)
    y = torch.arange(2).repeat_interleave(2)
    batch = {
        VISIBLE: Batch(random_images(8), torch.arange(4), y),
        INFRARED: Batch(random_images(4, seed=1), torch.arange(4), y),
    }
    epoch = csdn.begin_epoch(Config(), BetweenEpochs("images", 0, 0), IDENTITIES)
    stage.begin_epoch(0, epoch.for_workers())
    stage.module.train()
    moved = changed(
        stage,
        lambda: stage.terms(stage.module, batch, lambda x: x),
        {"module": stage.module, "text": small.text},
    )
    assert moved == {f"module.{name}" for name, _ in stage.module.named_parameters()}


def test_descriptors_are_unit_rows_of_equal_parts(small) -> None:
    encoder = build_encoder(Config(), small, **SIZE)
    plain, flipped = (Descriptor(encoder, flip=flip).eval() for flip in (False, True))
    images = random_images(3)
    with torch.no_grad():
        features = encoder(None, images)
        result = plain.embed(images, INFRARED)
        assert result.shape == (3, plain.feature_dim) == (3, 384 + 128)
        halves = result.split([384, 128], dim=1)
        for half, source in zip(halves, (features.neck, features.projected), strict=True):
            torch.testing.assert_close(half * 2**0.5, F.normalize(source, dim=1))
        both = flipped.embed(images, INFRARED)
        assert both.shape == (3, flipped.feature_dim) == (3, 2 * 512)
        torch.testing.assert_close(both.norm(dim=1), torch.ones(3))
        mirrored = flipped.embed(images.flip(-1), INFRARED)
        torch.testing.assert_close(mirrored, both.roll(512, dims=1))


def test_stems_of_the_reference_keep_one_rectifier(small) -> None:
    names = {
        profile: [
            type(layer).__name__
            for layer in build_encoder(
                Config(profile=profile), small, **SIZE
            ).visible_stem.children()
        ]
        for profile in ("clean", "reference")
    }
    assert names["clean"].count("ReLU") == 3
    assert names["reference"].count("ReLU") == 1
    assert names["reference"][-2:] == ["ReLU", "AvgPool2d"]


def test_what_the_machinery_is_told() -> None:
    config = Config()
    assert METHOD.inputs == (Modality.VISIBLE, Modality.INFRARED)
    assert METHOD.supervision(config) == "identities"
    assert list(METHOD.batch_rows(config).values()) == [32, 32, 32]
    assert list(METHOD.batch_rows(Config(anchors="none"))) == [
        "csdn.images.identities_per_batch x instances"
    ]
