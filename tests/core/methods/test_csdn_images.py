"""CSDN's images, stage 3: losses against their formulas, workers, what learns, descriptors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core import losses
from reid_core.method import BetweenEpochs
from reid_core.methods.csdn import between_epochs as csdn
from reid_core.methods.csdn.images import Descriptor, Outputs, build_encoder, image_terms
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.models.encoders import Features
from reid_core.stage import Terms
from reid_core.types import Batch
from tests.core.csdn_case import (
    IDENTITIES,
    INFRARED,
    SIZE,
    VISIBLE,
    assert_same_step,
    changed,
    open_stage,
    over_workers,
    rows,
    total,
)


def random_images(num: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 64, 32), generator=generator).to(torch.uint8)


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


def test_stage_three_moves_the_whole_image_side_and_no_text(small) -> None:
    stage = open_stage(Config(variant="head"), "images", small)
    y = torch.arange(2).repeat_interleave(2)
    batch = {
        VISIBLE: Batch(random_images(8), torch.arange(4), y),
        INFRARED: Batch(random_images(4, seed=1), torch.arange(4), y),
    }
    epoch = csdn.begin_epoch(Config(), BetweenEpochs("images", 0, 0), IDENTITIES)
    stage.begin_epoch(0, epoch.for_workers({}))
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
