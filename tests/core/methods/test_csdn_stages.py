"""CSDN's texts, stages 1 and 2: losses against their formulas, workers, and which tensors learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reid_core import losses
from reid_core.methods.csdn import METHOD
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.methods.csdn.stages import Fusing, MixedBatch, PairBatch, Prompting, anchors
from reid_core.models import backbones
from reid_core.models.prompts import Chosen
from reid_core.stage import Terms
from reid_core.types import Modality
from tests.core.csdn_case import (
    IDENTITIES,
    INFRARED,
    VISIBLE,
    assert_same_step,
    changed,
    open_stage,
    over_workers,
    rows,
    total,
)

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


# What learns when --------------------------------------------------------------------------------


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


def test_what_the_machinery_is_told() -> None:
    config = Config()
    assert METHOD.inputs == (Modality.VISIBLE, Modality.INFRARED)
    assert METHOD.supervision(config) == "identities"
    assert list(METHOD.batch_rows(config).values()) == [32, 32, 32]
    assert list(METHOD.batch_rows(Config(anchors="none"))) == [
        "csdn.images.identities_per_batch x instances"
    ]
