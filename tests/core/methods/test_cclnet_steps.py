"""One step of CCLNet's image stages against oracles in the authors' order of operations."""

from __future__ import annotations

from copy import deepcopy
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.transforms import normalize
from tests.core.cclnet_case import (
    INFRARED,
    INPUTS,
    VISIBLE,
    batch_of,
    epoch_of,
    handed,
    opened,
    small_config,
    step,
)


def written_loss(features: Any, batch: Any, banks: Any, given: Any, anchors: Any) -> Tensor:
    """L_v + L_r + I_v + I_r in float64, row by row."""
    total = torch.zeros((), dtype=torch.float64)
    for i, m in enumerate(INPUTS):
        half = slice(12 * i, 12 * i + 12)
        x = features.neck[half].double()
        x = x / x.norm(dim=1, keepdim=True)
        for row, y in zip(x, batch[m].labels, strict=True):
            scores = banks[m].double() @ row / 0.05
            total = total - (scores[y] - scores.logsumexp(0)) / 12
        known = [int(given[m][r]) for r in batch[m].rows]
        settings = [(g, y) for g, y in zip(features.projected[half], known, strict=True) if y != -1]
        for g, y in settings:
            scores = anchors[m].double() @ g.double()
            log = scores - scores.logsumexp(0)
            total = total - (0.9 * log[y] + 0.1 * log.mean()) / len(settings)
    return total


def test_one_step_of_align_is_the_written_one(clip):
    stage, config = opened(small_config(), "align", clip), small_config()
    epoch, past = epoch_of(config, "align"), handed(clip)
    stage.module.train()
    stage.begin_epoch(0, epoch.for_workers({}))
    batch, twin = batch_of(epoch), deepcopy(stage.module)
    banks = {m: torch.tensor(epoch.prototypes[m]) for m in INPUTS}
    before = {name: p.detach().clone() for name, p in stage.module.named_parameters()}

    loss = step(stage, batch)

    features = twin(*(normalize(batch[m].images) for m in INPUTS))
    expected = written_loss(
        features,
        batch,
        banks,
        {m: past[f"labels.{m}"] for m in INPUTS},
        {m: past[f"anchors.{m}"] for m in INPUTS},
    )
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    expected.backward()
    grads = dict(twin.named_parameters())
    for name, p in stage.module.named_parameters():
        if name == "neck.bias":
            assert torch.equal(p, before[name])
            continue
        scale = float(grads[name].grad.abs().max()) + 1e-3
        torch.testing.assert_close(p.grad, grads[name].grad, rtol=1e-3, atol=1e-4 * scale)
        # Adam's first step: the gradient with its decay over its own size
        g = p.grad + 5e-4 * before[name]
        rate = 3.5e-4 * (2 if "bias" in name else 1)
        torch.testing.assert_close(
            p.detach(), before[name] - rate * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-7
        )


def moved(bank: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    bank = bank.clone()
    for row, y in zip(x, labels.tolist(), strict=True):
        bank[y] = 0.1 * bank[y] + 0.9 * row
        bank[y] /= bank[y].norm()
    return bank


def assigned(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """The best one-to-one assignment among all, of fewer rows to more, and its filter."""
    cost = a @ b.T
    best = max(
        permutations(range(len(b)), len(a)),
        key=lambda columns: float(sum(cost[i, j] for i, j in enumerate(columns))),
    )
    return [(i, j) for i, j in enumerate(best) if cost[i, j] >= 0]


@pytest.mark.parametrize("stage_name", ["prepare", "align"])
@pytest.mark.parametrize("order", ["sequential", "simultaneous"])
def test_a_step_swaps_in_the_authors_order(clip, order, stage_name):
    """Visible updates, infrared updates, assignment of the new banks, then pair after pair."""
    config = small_config(swap={"when": "step", "order": order, "start_epoch": 0})
    stage = opened(config, stage_name, clip)
    epoch = epoch_of(config, stage_name)
    stage.module.train()
    stage.begin_epoch(0, epoch.for_workers({}))
    batch, twin = batch_of(epoch), deepcopy(stage.module)
    step(stage, batch)

    rows = F.normalize(twin(*(normalize(batch[m].images) for m in INPUTS)).neck.detach())
    start = {m: torch.tensor(epoch.prototypes[m]) for m in INPUTS}
    visible = moved(start[VISIBLE], rows[:12], batch[VISIBLE].labels)
    infrared = moved(start[INFRARED], rows[12:], batch[INFRARED].labels)
    source = visible if order == "sequential" else visible.clone()
    copy = infrared.clone()
    pairs = assigned(visible, infrared)
    # a pair with both sides in the batch: only there the two orders differ
    assert any(a in batch[VISIBLE].labels and b in batch[INFRARED].labels for a, b in pairs)
    for a, b in pairs:
        if a in batch[VISIBLE].labels:
            visible[a] = F.normalize(0.1 * visible[a] + 0.9 * copy[b], dim=0)
        if b in batch[INFRARED].labels:
            infrared[b] = F.normalize(0.1 * copy[b] + 0.9 * source[a], dim=0)
    state = stage.state_dict()
    torch.testing.assert_close(state["bank.visible"], visible, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["bank.infrared"], infrared, rtol=1e-4, atol=1e-5)


def test_an_epoch_swaps_before_its_first_batch_and_after_every_update(clip):
    config = small_config(swap={"when": "epoch", "start_epoch": 0})
    stage, epoch = opened(config, "align", clip), epoch_of(config, "align")
    plain = epoch_of(small_config(swap={"when": "never"}), "align")
    a, b = (torch.tensor(plain.prototypes[m]) for m in INPUTS)
    assert [tuple(pair) for pair in epoch.pairs] == assigned(a, b)
    for i, j in epoch.pairs:
        mixed = F.normalize(0.1 * a[i] + 0.9 * b[j], dim=0)
        torch.testing.assert_close(torch.tensor(epoch.prototypes[VISIBLE][i]), mixed)
        mixed = F.normalize(0.1 * b[j] + 0.9 * a[i], dim=0)
        torch.testing.assert_close(torch.tensor(epoch.prototypes[INFRARED][j]), mixed)

    stage.module.train()
    stage.begin_epoch(0, epoch.for_workers({}))
    batch, twin = batch_of(epoch), deepcopy(stage.module)
    step(stage, batch)
    rows = F.normalize(twin(*(normalize(batch[m].images) for m in INPUTS)).neck.detach())
    old = {m: torch.tensor(epoch.prototypes[m]) for m in INPUTS}
    visible = moved(old[VISIBLE], rows[:12], batch[VISIBLE].labels)
    infrared = moved(old[INFRARED], rows[12:], batch[INFRARED].labels)
    new = visible.clone()
    for i, j in epoch.pairs.tolist():
        if i in batch[VISIBLE].labels:
            new[i] = F.normalize(0.1 * visible[i] + 0.9 * infrared[j], dim=0)
    torch.testing.assert_close(stage.state_dict()["bank.visible"], new, rtol=1e-4, atol=1e-5)
