"""CPCL within an epoch: losses against their formulas, any number of workers, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core import losses
from reid_core.memory import ClusterMemory
from reid_core.methods.cpcl import stages
from reid_core.methods.cpcl.between_epochs import TEXT, VISIBLE
from reid_core.methods.cpcl.settings import Config
from reid_core.methods.cpcl.stages import Pairs, Prototypes
from reid_core.stage import Epoch

CLUSTERS = {VISIBLE: 4, TEXT: 3}


def config(**changes: object) -> Config:
    return Config.model_validate(changes)


def unit(num: int, *, seed: int, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, width, generator=generator), dim=1)


def pairs(num: int = 6) -> Pairs:
    """Features that ask for gradients; an outlier on either side, two captions of one image."""
    return Pairs(
        {VISIBLE: unit(num, seed=0).requires_grad_(), TEXT: unit(num, seed=1).requires_grad_()},
        {
            VISIBLE: torch.tensor([0, 0, -1, 3, 0, -1])[:num],
            TEXT: torch.tensor([2, -1, 1, 2, 0, -1])[:num],
        },
        torch.tensor([5, 5, 7, 8, 9, 1])[:num],
    )


def prototypes(chosen: Config) -> Prototypes:
    epoch = Epoch(
        labels={},
        prototypes={m: unit(n, seed=2 + n).numpy() for m, n in CLUSTERS.items()},
        pairs=np.array([[0, 2], [0, 2], [0, 2], [0, 0], [3, 2], [1, 1]]),
    )
    return stages.open_prototypes(chosen, epoch, torch.device("cpu"))


def total(chosen: Config, own: Pairs, everyone: Pairs, *, memory: bool = True) -> Tensor:
    terms = stages.pair_terms(chosen, own, everyone, prototypes(chosen) if memory else None)
    return torch.stack([term.weight * term.mean for term in terms.values()]).sum()


# Hybrid cross-modal matching ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("pair", {(0, 1)}),
        ("image", {(0, 1), (0, 4), (1, 4)}),
        ("text", {(0, 1), (0, 3)}),
        ("union", {(0, 1), (0, 4), (1, 4), (0, 3)}),
        ("intersection", {(0, 1)}),
    ],
)
def test_positives_are_pairs_of_one_image_and_of_equal_clusters_never_outliers(
    rule: str, expected: set[tuple[int, int]]
) -> None:
    result = stages.positives(rule, pairs())
    assert torch.equal(result, result.T)
    assert result.diagonal().all()
    assert {(i, j) for i, j in result.nonzero().tolist() if i < j} == expected


def test_the_whole_loss_is_the_sum_of_its_published_parts() -> None:
    chosen = config(lambda1=0.5, lambda2=2.0)
    own, memory = pairs(), prototypes(chosen)
    v, t = own.features[VISIBLE], own.features[TEXT]
    yv, yt = own.labels[VISIBLE], own.labels[TEXT]
    bank = {m: memory.memories[m].bank for m in CLUSTERS}
    instance = losses.distribution_matching(v, t, stages.positives("image", own), temperature=0.02)

    def contrast(x: Tensor, y: Tensor, against: Tensor) -> Tensor:
        return losses.cluster_contrast(x, y, against, temperature=0.05)

    within = contrast(v, yv, bank[VISIBLE]) + contrast(t, yt, bank[TEXT])
    across = contrast(v, yt, bank[TEXT]) + contrast(t, yv, bank[VISIBLE])
    expected = instance + 0.5 * within / 2 + 2.0 * across / 2
    assert total(chosen, own, own).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"lambda1": 0, "lambda2": 0, "matching": {"instance": "itc"}}, {"instance"}),
        ({"lambda2": 0}, {"instance", "visible_prototypes", "text_prototypes"}),
        ({"lambda1": 0}, {"instance", "visible_to_text", "text_to_visible"}),
    ],
)
def test_each_ablation_has_its_terms(changes: dict, names: set[str]) -> None:
    chosen = config(**changes)
    terms = stages.pair_terms(chosen, pairs(), pairs(), prototypes(chosen))
    assert terms.keys() == names


def test_the_baseline_is_clips_loss() -> None:
    chosen = config(matching={"instance": "itc"})
    share = pairs()
    logits = share.features[VISIBLE] @ share.features[TEXT].T / 0.02
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert stages.instance_loss(chosen, share).item() == pytest.approx(expected.item(), rel=1e-5)


def test_soft_targets_are_the_clusters_that_occur_together() -> None:
    chosen = config(matching={"targets": "soft"})
    memory = prototypes(chosen)
    to_text = stages.cross_targets(chosen, pairs(), memory, own=VISIBLE, other=TEXT)
    assert to_text.tolist() == [[1, 0, 3], [1, 0, 3], [0, 0, 0], [0, 0, 1], [1, 0, 3], [0, 0, 0]]
    to_image = stages.cross_targets(chosen, pairs(), memory, own=TEXT, other=VISIBLE)
    assert to_image.tolist()[:3] == [[3, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("targets", ["hard", "soft", "divergence"])
@pytest.mark.parametrize("hard_negatives", [None, 1])
@pytest.mark.parametrize("instance", ["sdm", "itc", "multi_positive"])
def test_every_combination_is_finite_with_gradients_for_features_alone(
    targets: str, hard_negatives: int | None, instance: str
) -> None:
    chosen = config(
        matching={"targets": targets, "hard_negatives": hard_negatives, "instance": instance}
    )
    own, memory = pairs(), prototypes(chosen)
    terms = stages.pair_terms(chosen, own, own, memory)
    torch.stack([term.weight * term.mean for term in terms.values()]).sum().backward()
    for x in own.features.values():
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0
    assert not any(memory.memories[m].bank.requires_grad for m in CLUSTERS)


def test_outliers_alone_leave_the_instance_loss() -> None:
    nothing = torch.full((6,), -1)
    own = replace(pairs(), labels={VISIBLE: nothing, TEXT: nothing})
    chosen = config()
    terms = stages.pair_terms(chosen, own, own, prototypes(chosen))
    assert [term.mean.item() for name, term in terms.items() if name != "instance"] == [0] * 4
    assert [int(term.count) for term in terms.values()] == [6, 0, 0, 0, 0]
    assert total(chosen, own, own) == total(chosen, own, own, memory=False)


# Any number of workers ---------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("instance", ["sdm", "itc"])
def test_workers_together_take_the_step_of_one(world: int, instance: str) -> None:
    """Means weighted by counts, and gradients through `gather`, agree with a single worker's."""
    chosen = config(matching={"instance": instance})
    alone = pairs()
    total(chosen, alone, alone).backward()
    whole = pairs()
    size = 6 // world
    by_name: dict[str, list] = {}
    for rank in range(world):
        part = slice(rank * size, (rank + 1) * size)
        own = Pairs(
            {m: x[part] for m, x in whole.features.items()},
            {m: y[part] for m, y in whole.labels.items()},
            whole.rows[part],
        )
        for name, term in stages.pair_terms(chosen, own, whole, prototypes(chosen)).items():
            by_name.setdefault(name, []).append(term)
    combined = torch.zeros(())
    for terms in by_name.values():
        counts = torch.tensor([int(term.count) for term in terms])
        mean = torch.stack([term.mean for term in terms]) @ counts.float() / counts.sum()
        combined = combined + terms[0].weight * mean
    combined.backward()
    assert combined.item() == pytest.approx(total(chosen, alone, alone).item(), rel=1e-5)
    for m in CLUSTERS:
        torch.testing.assert_close(whole.features[m].grad, alone.features[m].grad)


# Prototypical multi-modal memory -----------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "bank"), (0.0, "row")])
def test_momentum_one_keeps_and_zero_copies(momentum: float, expected: str) -> None:
    chosen = config(memory={"momentum": momentum})
    own, memories = pairs(), prototypes(chosen).memories
    before = {m: memories[m].bank.clone() for m in CLUSTERS}
    stages.update(chosen, memories, own, repeats={})
    for m, last in ((VISIBLE, 4), (TEXT, 4)):  # row 4 is the last of cluster 0 in both
        wanted = before[m][0] if expected == "bank" else own.features[m][last].detach()
        torch.testing.assert_close(memories[m].bank[0], wanted)
        torch.testing.assert_close(memories[m].bank.norm(dim=1), torch.ones(CLUSTERS[m]))
    assert torch.equal(memories[VISIBLE].bank[1:3], before[VISIBLE][1:3])  # no row of theirs


def test_each_memory_is_moved_by_its_own_modality_alone() -> None:
    chosen, own = config(), pairs()
    without = replace(own, labels={**own.labels, TEXT: torch.full((6,), -1)})
    both, images = prototypes(chosen).memories, prototypes(chosen).memories
    before = images[TEXT].bank.clone()
    stages.update(chosen, both, own, repeats={})
    stages.update(chosen, images, without, repeats={})
    assert torch.equal(images[TEXT].bank, before)
    assert torch.equal(images[VISIBLE].bank, both[VISIBLE].bank)


def test_the_hardest_row_alone_moves_its_prototype() -> None:
    bank = torch.eye(2)
    x = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 0, -1])
    hardest = stages.hardest_only(x, labels, bank)
    assert hardest.tolist() == [-1, 0, -1, 1, -1, -1]  # rows 1 and 4 tie: the first
    memory = ClusterMemory(bank, momentum=0.0, temperature=1.0)
    chosen = config(memory={"momentum": 0.0, "update": "hardest"})
    rows = Pairs({VISIBLE: x}, {VISIBLE: labels}, torch.arange(6))
    stages.update(chosen, {VISIBLE: memory}, rows, repeats={})
    torch.testing.assert_close(memory.bank, x[[1, 3]])


def test_hardest_of_nothing_is_nothing() -> None:
    nothing = torch.full((3,), -1)
    assert torch.equal(stages.hardest_only(unit(3, seed=0), nothing, torch.eye(8)), nothing)
    empty = torch.empty(0, 8)  # an epoch without prototype losses may have no cluster
    assert torch.equal(stages.hardest_only(unit(3, seed=0), nothing, empty), nothing)
