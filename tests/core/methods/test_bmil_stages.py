"""BMIL within an epoch: losses, gradients, which banks move, and what a stage hands on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reid_core import optim
from reid_core.memory import HybridMemory
from reid_core.method import EpochPlan, Opening
from reid_core.methods.bmil import objectives, opening
from reid_core.methods.bmil.settings import Config
from reid_core.models import backbones
from reid_core.types import Batch, Modality
from tests.core.bmil_case import INPUTS, SIZE, R, V, config_of, epoch_of

# Losses ------------------------------------------------------------------------------------------


def test_the_margin_is_of_the_global_mean_of_each_modality_in_one_exchange() -> None:
    """Visible rows of two workers are beyond it together, infrared ones below."""
    counts = dict.fromkeys(INPUTS, torch.tensor(4))
    for own, other in ((0.05, 0.45), (0.45, 0.05)):
        means = {V: torch.tensor(own), R: torch.tensor(0.1)}
        means = {m: mean.requires_grad_() for m, mean in means.items()}
        others = torch.tensor([[[4 * other, 4.0], [4 * 0.2, 4.0]]])
        asked: list[Tensor] = []

        def gather(x: Tensor, others: Tensor = others, asked: list[Tensor] = asked) -> Tensor:
            asked.append(x)
            return torch.cat([x, others])

        left = objectives.beyond_margin(means, counts, 0.2, gather)
        assert len(asked) == 1
        assert left[V].item() == pytest.approx(own - 0.2)
        assert left[R].item() == 0
        sum(left.values()).backward()
        assert (means[V].grad, means[R].grad) == (1, 0)
    # both together are what one worker with a mean of .25 has
    assert pytest.approx(0.25 - 0.2) == (0.05 - 0.2 + 0.45 - 0.2) / 2


def rows_of(num: int, width: int = 16, seed: int = 0) -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        m: torch.randn(num, 1, width, generator=generator, dtype=torch.float64) for m in INPUTS
    }
    return {m: functional.normalize(x, dim=2).requires_grad_() for m, x in drawn.items()}


def test_below_the_margin_the_mean_bank_adds_half_of_nothing() -> None:
    config = config_of(memory={"temperature": 1.0, "margin": 2.0})
    x = {m: rows.detach().float().requires_grad_() for m, rows in rows_of(4).items()}
    labels = dict.fromkeys(INPUTS, torch.arange(4))
    far = functional.normalize(torch.randn(4, 16), dim=1)
    memories = {m: HybridMemory(x[m].detach()[:, 0], momentum=0.1) for m in INPUTS}
    for m in INPUTS:
        memories[m].hard = far.clone()
        of_mean = functional.cross_entropy(x[m][:, 0] @ memories[m].mean.T, labels[m])
        assert 0.5 < of_mean < config.memory.margin
    terms = objectives.separate_terms(
        config, x, labels, memories, rows=labels, votes=dict.fromkeys(INPUTS), gather=lambda y: y
    )
    total = sum((t.weight * t.mean for t in terms.values()), torch.zeros(()))
    of_hard = [functional.cross_entropy(x[m][:, 0] @ far.T, labels[m]) for m in INPUTS]
    torch.testing.assert_close(total, (of_hard[0] + of_hard[1]) / 2)
    for m, loss in zip(INPUTS, of_hard, strict=True):
        (given,) = torch.autograd.grad(total, x[m], retain_graph=True)
        torch.testing.assert_close(given, torch.autograd.grad(loss, x[m])[0] / 2)


def proxies_of() -> tuple[objectives.ProxyTable, HybridMemory]:
    """Labels 0 and 1 in both modalities, 2 in infrared alone: proxies v0 r0 v1 r1 r2."""
    arrays = {
        "proxies.visible": np.array([0, 2, -1]),
        "proxies.infrared": np.array([1, 3, 4]),
        "proxy_labels": np.array([0, 0, 1, 1, 2]),
    }
    generator = torch.Generator().manual_seed(9)
    memory = HybridMemory(
        functional.normalize(torch.randn(5, 16, generator=generator), dim=1), momentum=0.1
    )
    memory.hard = functional.normalize(torch.randn(5, 16, generator=generator), dim=1)
    memory.mean, memory.hard = memory.mean.double(), memory.hard.double()
    return objectives.ProxyTable.of(arrays, torch.device("cpu")), memory


def test_targets_are_even_over_the_proxies_of_a_label_and_so_are_votes() -> None:
    proxies, _ = proxies_of()
    targets = proxies.targets(torch.tensor([0, -1, 2]))
    assert targets.tolist() == [[0.5, 0.5, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    spread = proxies.spread(torch.tensor([[0.5, 0.25, 0.25]]))
    assert spread.tolist() == [[0.25, 0.25, 0.125, 0.125, 0.25]]
    both = {f"proxies.{m}": np.arange(3) for m in INPUTS}  # bmil.memory.split=false
    unsplit = objectives.ProxyTable.of(both | {"proxy_labels": np.arange(3)}, torch.device("cpu"))
    assert unsplit.targets(torch.tensor([1, -1])).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert unsplit.spread(torch.tensor([[0.5, 0.25, 0.25]])).tolist() == [[0.5, 0.25, 0.25]]


def joint_total(config: Config, x, labels, memory, proxies) -> Tensor:
    terms = objectives.joint_terms(
        config, x, labels, memory, proxies, rows=labels, votes=dict.fromkeys(INPUTS),
        gather=lambda y: y,
    )  # fmt: skip
    return sum((t.weight * t.mean for t in terms.values()), torch.zeros(()))


def test_gradient_of_the_joint_loss_is_of_the_banks_before_the_update() -> None:
    x, (proxies, memory) = rows_of(6), proxies_of()
    labels = {V: torch.tensor([0, 1, 0, 1, 0, 1]), R: torch.tensor([0, 1, 2, 2, 1, 0])}
    joint_total(config_of(), x, labels, memory, proxies).backward()
    for m in INPUTS:
        units = x[m].detach()[:, 0]
        expected = torch.zeros_like(units)
        for bank in (memory.mean, memory.hard):
            softmax = functional.softmax(units @ bank.T / 0.05, dim=1)
            target = proxies.targets(labels[m]).double()
            expected += 0.25 / 6 * (softmax - target) @ bank / 0.05
        torch.testing.assert_close(x[m].grad[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_the_published_gradient_has_the_same_loss_and_moved_banks_for_infrared() -> None:
    (proxies, memory), labels = proxies_of(), {m: torch.tensor([0, 1, 0, 1]) for m in INPUTS}
    clean, published = rows_of(4), rows_of(4)
    one = joint_total(config_of(), clean, labels, memory, proxies)
    other = joint_total(
        config_of(memory={"gradient": "as_published"}), published, labels, memory, proxies
    )
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    torch.testing.assert_close(clean[V].grad, published[V].grad)
    moved = HybridMemory(memory.mean, momentum=0.1)
    moved.mean, moved.hard = memory.mean.clone(), memory.hard.clone()
    moved.update(clean[V].detach()[:, 0], proxies.of_rows(V, labels[V]))
    units, expected = clean[R].detach()[:, 0], torch.zeros(4, 16, dtype=torch.float64)
    for name in ("mean", "hard"):
        softmax = functional.softmax(units @ getattr(memory, name).T / 0.05, dim=1)
        target = proxies.targets(labels[R]).double()
        expected += 0.25 / 4 * (softmax - target) @ getattr(moved, name) / 0.05
    torch.testing.assert_close(published[R].grad[:, 0], expected, rtol=1e-5, atol=1e-7)
    assert (clean[R].grad - published[R].grad).norm() > 0.1 * clean[R].grad.norm()


def test_a_softmax_for_each_modality_leaves_out_who_has_no_partner_there() -> None:
    """Labels 0 and 1 are in both modalities, 2 in infrared alone: no loss among visible proxies."""
    x, (proxies, memory) = rows_of(3), proxies_of()
    labels = {V: torch.tensor([0, 1, 0]), R: torch.tensor([0, 2, 1])}
    config = config_of(memory={"softmax": "modality", "scored": None})
    terms = objectives.joint_terms(
        config, x, labels, memory, proxies, rows=labels, votes=dict.fromkeys(INPUTS),
        gather=lambda y: y,
    )  # fmt: skip
    assert {int(t.count) for n, t in terms.items() if n.startswith("visible")} == {3}
    term = terms["infrared_joint_mean_to_visible"]
    assert (int(term.count), term.weight) == (2, 0.125)
    scores = x[R].detach()[[0, 2], 0] @ memory.mean[[0, 2]].T / 0.05
    expected = functional.cross_entropy(scores, torch.tensor([0, 1]))
    torch.testing.assert_close(term.mean, expected)


def test_two_slices_of_a_batch_have_the_losses_of_the_whole() -> None:
    x, (proxies, memory) = rows_of(8), proxies_of()
    labels = {V: torch.arange(8) % 2, R: torch.arange(8) % 3}
    whole = joint_total(config_of(), x, labels, memory, proxies)
    halves = [
        joint_total(
            config_of(),
            {m: v[part] for m, v in x.items()},
            {m: y[part] for m, y in labels.items()},
            memory,
            proxies,
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


# Steps -------------------------------------------------------------------------------------------


def batch_of(epoch: EpochPlan, number: int, views: int = 2) -> dict[Modality, Batch]:
    generator = torch.Generator().manual_seed(number)
    batch = {}
    for m in INPUTS:
        rows = epoch.rows[m][number]
        num = len(rows) * (views if m == V else 1)
        images = torch.randint(0, 256, (num, 3, 32, 16), generator=generator)
        batch[m] = Batch(
            images.to(torch.uint8),
            torch.from_numpy(rows),
            torch.from_numpy(epoch.place_labels[m][number]),
            kind=epoch.kinds[number],
        )
    return batch


def take(stage: Any, optimizer: Any, batch: dict[Modality, Batch]) -> Tensor:
    optim.set_lr(optimizer, 1e-3)
    optimizer.zero_grad()
    terms = stage.terms(stage.module, stage.on_host(batch), lambda x: x)
    total = sum(term.weight * term.mean for term in terms.values())
    total.backward()
    optimizer.step()
    stage.update(lambda x: x)
    return total.detach()


def test_steps_take_turns_each_moves_its_own_banks_and_meets_new_weights(
    clip: backbones.Backbone,
) -> None:
    config = config_of()
    epoch = epoch_of(config)
    stage = opening.open_stage(config, "joint", Opening(clip, **SIZE, handed={}, seed=0))
    stage.begin_epoch(0, epoch.for_workers({}))
    optimizer = stage.optimizer()

    def banks() -> dict[str, Tensor]:
        return {n: x.clone() for n, x in stage.state_dict().items() if n.startswith("bank")}

    def moved(before: dict[str, Tensor]) -> set[str]:
        return {n.split(".")[1] for n, x in banks().items() if not torch.equal(x, before[n])}

    start, weights = banks(), stage.module.neck.weight.detach().clone()
    first = stage.terms(stage.module, stage.on_host(batch_of(epoch, 0)), lambda x: x)
    assert set(first) == {f"{m}_{bank}" for m in INPUTS for bank in ("hard", "mean")}
    stage.begin_epoch(0, epoch.for_workers({}))
    take(stage, optimizer, batch_of(epoch, 0))
    assert moved(start) == {"visible", "infrared"}
    assert not torch.equal(stage.module.neck.weight, weights)
    between = banks()
    take(stage, optimizer, batch_of(epoch, 1))
    assert moved(between) == {"joint"}
    assert all(x.requires_grad is False for x in banks().values())


def test_the_state_says_which_labels_hold_for_both_modalities(clip: backbones.Backbone) -> None:
    """Joint labels are those of both; the first stage's say nothing across modalities."""
    config = config_of()
    for name in ("intra", "joint"):
        epoch = epoch_of(config, name)
        stage = opening.open_stage(config, name, Opening(clip, **SIZE, handed={}, seed=0))
        stage.begin_epoch(0, epoch.for_workers({}))
        state = stage.state_dict()
        visible, infrared = (set(state[f"labels.{m}"].tolist()) - {-1} for m in INPUTS)
        both = sorted(visible & infrared) if name == "joint" else []
        assert len(both) > 1 or name == "intra"
        assert state["pairs"].tolist() == [[label, label] for label in both]
        stage.load_state_dict({key: x for key, x in state.items() if key != "pairs"})  # of before


def test_stage_two_starts_from_the_weights_of_stage_one(clip: backbones.Backbone) -> None:
    config = config_of()
    first = opening.open_stage(config, "intra", Opening(clip, **SIZE, handed={}, seed=0))
    epoch = epoch_of(config, "intra")
    first.begin_epoch(0, epoch.for_workers({}))
    take(first, first.optimizer(), batch_of(epoch, 0))
    second = opening.open_stage(
        config, "joint", Opening(clip, **SIZE, handed=first.hand_on(), seed=0)
    )
    for name, x in first.module.state_dict().items():
        assert torch.equal(x, second.module.state_dict()[name]), name
    assert second.hand_on() == {}


def test_descriptors_are_means_of_both_mirrors(clip: backbones.Backbone) -> None:
    plain = opening.load_encoder(config_of(flip=False), clip, **SIZE, state=None)
    mirrored = opening.load_encoder(config_of(), clip, **SIZE, state=None)
    images = torch.randint(0, 256, (5, 3, 32, 16)).to(torch.uint8)
    both = [plain.embed(x, V) for x in (images, images.flip(-1))]
    expected = functional.normalize(both[0] + both[1], dim=1)
    torch.testing.assert_close(mirrored.embed(images, V), expected)
    torch.testing.assert_close(mirrored.embed(images.flip(-1), V), expected)
    projected = [
        functional.normalize(plain.project(x, V), dim=1) for x in (images, images.flip(-1))
    ]
    expected = functional.normalize(projected[0] + projected[1], dim=1)
    torch.testing.assert_close(mirrored.project(images, V), expected)
