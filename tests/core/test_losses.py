"""Losses against hand-worked values, row-by-row oracles and their edge cases."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core import losses
from reid_core.losses.masking import target_shares
from tests import oracles


def rows(num: int, width: int = 8, *, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def unit(num: int, width: int = 8, *, seed: int = 0) -> Tensor:
    return F.normalize(rows(num, width, seed=seed), dim=1)


def test_cluster_contrast_by_hand() -> None:
    bank = torch.eye(2)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = losses.cluster_contrast(x, torch.tensor([0, 0]), bank, temperature=0.5)
    right = -math.log(math.exp(2) / (math.exp(2) + 1))
    wrong = -math.log(1 / (math.exp(2) + 1))
    assert loss.item() == pytest.approx((right + wrong) / 2)


def test_cluster_contrast_means_over_labeled_rows_only() -> None:
    x, bank = unit(6), unit(3, seed=1)
    labels = torch.tensor([0, -1, 2, -1, 1, 0])
    remaining = labels != -1
    assert torch.allclose(
        losses.cluster_contrast(x, labels, bank, temperature=0.05),
        F.cross_entropy(x[remaining] @ bank.T / 0.05, labels[remaining]),
    )
    assert int(losses.count_valid(labels)) == 4


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, none: losses.cluster_contrast(x, none, unit(3), temperature=0.05),
        lambda x, none: losses.image_to_text(x, none, rows(3)),
        lambda x, none: losses.supervised_contrast(x, rows(5), none, torch.full((5,), -1)),
        lambda x, none: losses.weighted_regularised_triplet(x, none),
        lambda x, none: losses.weighted_regularised_triplet(x, none, stable=False),
        lambda x, none: losses.identity_cross_entropy(x, none),
        lambda x, none: losses.modality_shared_enhancement(x, none, torch.tensor([0, 0, 1, 1])),
        lambda x, none: losses.distribution_matching(
            x, unit(4), torch.zeros(4, 4, dtype=torch.bool), temperature=0.02
        ),
        lambda x, none: losses.image_text_contrast(
            x, unit(4), torch.zeros(4, 4, dtype=torch.bool), temperature=0.02
        ),
        lambda x, none: losses.prototype_contrast(
            x, torch.zeros(4, 3), unit(3), temperature=0.05, num_negatives=1
        ),
        lambda x, none: losses.prototype_divergence(
            x, torch.zeros(4, 3), unit(3), temperature=0.05
        ),
    ],
)
def test_only_outliers_give_a_zero_that_touches_the_graph(loss) -> None:
    x = unit(4).requires_grad_()
    value = loss(x, torch.full((4,), -1))
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_image_to_text_is_smoothed_over_all_classes() -> None:
    g, anchors, labels = rows(4), rows(3, seed=1), torch.tensor([2, 0, -1, 1])
    log_p = F.log_softmax(g @ anchors.T, dim=1)
    expected = 0.0
    for row in (0, 1, 3):
        target = torch.full((3,), 0.1 / 3)
        target[labels[row]] += 0.9
        expected -= float((target * log_p[row]).sum()) / 3
    assert losses.image_to_text(g, labels, anchors).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_supervised_contrast_equals_its_oracle(temperature: float) -> None:
    a, b = rows(6), rows(9, seed=1)
    labels_a, labels_b = [0, 1, -1, 2, 1, 7], [1, 0, 2, 2, -1, 1, 0, 3, -1]
    loss = losses.supervised_contrast(
        a, b, torch.tensor(labels_a), torch.tensor(labels_b), temperature=temperature
    )
    expected = oracles.supervised_contrast(a, b, labels_a, labels_b, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_stage_one_loss_of_csdn_cannot_tell_the_two_prompt_sets_apart() -> None:
    images, first, second = rows(8), rows(8, seed=1), rows(8, seed=2)
    y = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    both, swapped = torch.cat([first, second]), torch.cat([second, first])
    yy = torch.cat([y, y])
    assert losses.supervised_contrast(images, both, y, yy).item() == pytest.approx(
        losses.supervised_contrast(images, swapped, y, yy).item(), rel=1e-6
    )


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_triplet_equals_its_oracle(stable: bool, scale: float) -> None:
    x, labels = rows(10).double() * scale, [0, 0, 1, 1, 1, 2, -1, 2, -1, 0]
    loss = losses.weighted_regularised_triplet(x, torch.tensor(labels), stable=stable)
    assert loss.item() == pytest.approx(
        oracles.weighted_triplet(x, labels, stable=stable), rel=1e-4, abs=1e-8
    )


def test_triplet_published_behavior_over_the_feature_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(8, 2048, generator=generator).repeat_interleave(12, dim=0)
    x = centers + 0.5 * torch.randn(96, 2048, generator=generator)
    labels = torch.arange(8).repeat_interleave(12)
    scales = (0.05, 0.2, 0.5, 1.0)

    def at(scale: float, stable: bool) -> float:
        return float(losses.weighted_regularised_triplet(x * scale, labels, stable=stable))

    small, middle, large, collapsed = (at(scale, False) for scale in scales)
    assert small == pytest.approx(0.13, abs=0.01)
    assert middle == pytest.approx(0, abs=0.01)
    assert large == pytest.approx(16, abs=0.5)
    assert collapsed == pytest.approx(32, abs=1)
    stable = [at(scale, True) for scale in scales]
    assert stable == sorted(stable, reverse=True)
    assert all(np.isfinite(stable))


def test_triplet_gradient_is_finite_on_equal_rows() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    losses.weighted_regularised_triplet(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_distribution_matching_by_hand() -> None:
    img = txt = torch.eye(2)
    positives = torch.eye(2, dtype=torch.bool)
    p = 1 / (1 + math.exp(-1 / 0.5))
    one_way = p * (math.log(p) - math.log(1 + 1e-8)) + (1 - p) * (math.log(1 - p) - math.log(1e-8))
    loss = losses.distribution_matching(img, txt, positives, temperature=0.5)
    assert loss.item() == pytest.approx(2 * one_way, rel=1e-5)


def test_distribution_matching_is_zero_where_the_distributions_agree() -> None:
    same = torch.ones(3, 2) / math.sqrt(2)
    loss = losses.distribution_matching(
        same, same, torch.ones(3, 3, dtype=torch.bool), temperature=0.02
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_distribution_matching_normalizes_targets_by_row() -> None:
    """A pattern that is no equivalence relation: row sums differ from column sums."""
    img, txt = unit(2), unit(3, seed=1)
    positives = torch.tensor([[True, True, False], [True, False, False]])
    expected = 0.0
    for own, other, mask in ((img, txt, positives), (txt, img, positives.T)):
        for i in range(len(own)):
            if mask[i].any():
                log_p = F.log_softmax(own[i] @ other.T / 0.1, dim=0)
                q = mask[i] / mask[i].sum()
                term = (log_p.exp() * (log_p - torch.log(q + 1e-8))).sum()
                expected += float(term) / int(mask.any(dim=1).sum())
    loss = losses.distribution_matching(img, txt, positives, temperature=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_modality_shared_enhancement_equals_the_published_formula() -> None:
    """Eight identities, four rows per modality, one after the other, as the public code needs."""
    x = rows(64).double()
    labels = torch.arange(8).repeat_interleave(4).repeat(2)
    groups = torch.arange(2).repeat_interleave(32)
    total = 0.0
    for i in range(64):
        partners = [j for j in range(64) if labels[j] == labels[i] and j != i]
        a = [float((x[i] - x[j]).norm()) for j in partners if groups[j] == groups[i]]
        c = [float((x[i] - x[j]).norm()) for j in partners if groups[j] != groups[i]]
        assert (len(a), len(c)) == (3, 4)
        total += (np.mean(c) - np.mean(a)) ** 2 / 64
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for rows_in in (torch.arange(64), order):
        loss = losses.modality_shared_enhancement(x[rows_in], labels[rows_in], groups[rows_in])
        assert loss.item() == pytest.approx(total, rel=1e-6)


def test_modality_shared_enhancement_leaves_out_rows_without_both_kinds_of_partners() -> None:
    x = torch.tensor([[0.0], [1.0], [5.0], [9.0], [9.0]], requires_grad=True)
    labels, groups = torch.tensor([0, 0, 0, 1, -1]), torch.tensor([0, 0, 1, 0, 1])
    loss = losses.modality_shared_enhancement(x, labels, groups)
    # rows 0 and 1: (5 - 1)^2 and (4 - 1)^2; row 2 has no second image of its modality
    assert loss.item() == pytest.approx((16 + 9) / 2)
    loss.backward()
    assert x.grad is not None
    assert torch.equal(x.grad[3:], torch.zeros(2, 1))


def test_identity_cross_entropy_is_not_smoothed() -> None:
    logits, labels = rows(4, 3), torch.tensor([2, 0, -1, 1])
    remaining = labels != -1
    expected = -F.log_softmax(logits[remaining], dim=1)[torch.arange(3), labels[remaining]].mean()
    assert losses.identity_cross_entropy(logits, labels).item() == pytest.approx(expected.item())


def test_targets_of_distribution_matching_sum_to_one_under_a_union() -> None:
    """Dividing by the wrong axis shows here: the pattern is no equivalence relation."""
    union = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    assert torch.equal(target_shares(union).sum(dim=1), torch.ones(3))
    loss = losses.distribution_matching(unit(3), unit(3, seed=1), union, temperature=0.02)
    assert torch.isfinite(loss)
    assert loss > 0


def test_image_text_contrast_with_one_positive_each_is_clips_loss() -> None:
    img, txt = unit(5), unit(5, seed=1)
    logits, own = img @ txt.T / 0.02, torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    eye = torch.eye(5, dtype=torch.bool)
    assert losses.image_text_contrast(img, txt, eye, temperature=0.02).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_image_text_contrast_by_hand() -> None:
    """Two of three captions belong to image 0, none to image 1."""
    img, txt = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    positives = torch.tensor([[True, True, False], [False, False, False]])
    e = [math.exp(s) for s in (1.0, 0.0, 0.6)]
    to_text = -math.log((e[0] + e[1]) / sum(e))
    # both captions have image 0; caption 1 prefers image 1
    to_image = (-math.log(e[0] / (e[0] + 1)) - math.log(1 / (1 + math.e))) / 2
    loss = losses.image_text_contrast(img, txt, positives, temperature=1.0)
    assert loss.item() == pytest.approx((to_text + to_image) / 2, rel=1e-5)


def test_one_hot_prototype_targets_are_the_cluster_contrast() -> None:
    x, bank, labels = unit(6), unit(4, seed=1), torch.tensor([0, 3, -1, 1, 1, -1])
    targets = F.one_hot(labels.clamp(min=0), 4) * (labels != -1)[:, None]
    loss = losses.prototype_contrast(x, targets, bank, temperature=0.05)
    expected = losses.cluster_contrast(x, labels, bank, temperature=0.05)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(losses.count_targets(targets)) == 4


def test_soft_prototype_targets_are_counts_of_co_occurrence() -> None:
    """An image cluster seen three times with text cluster 0 and once with 2: q = (3/4, 0, 1/4)."""
    x, bank, counts = unit(1), unit(3, seed=1), torch.tensor([[3, 0, 1]])
    log_p = F.log_softmax(x @ bank.T / 0.05, dim=1)[0]
    contrast = losses.prototype_contrast(x, counts, bank, temperature=0.05)
    assert contrast.item() == pytest.approx(-(0.75 * log_p[0] + 0.25 * log_p[2]).item(), rel=1e-5)
    q = torch.tensor([0.75, 0, 0.25])
    divergence = losses.prototype_divergence(x, counts, bank, temperature=0.05)
    expected = (log_p.exp() * (log_p - torch.log(q + 1e-8))).sum()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)


def test_prototype_divergence_is_zero_where_the_distributions_agree() -> None:
    bank = unit(3, seed=1)
    x = unit(1)
    p = torch.softmax(x @ bank.T / 0.5, dim=1)
    assert losses.prototype_divergence(x, p, bank, temperature=0.5).item() == pytest.approx(
        0, abs=1e-6
    )


def test_hard_negatives_leave_the_positive_and_the_highest_scores() -> None:
    bank = torch.eye(4)
    x = F.normalize(torch.tensor([[1.0, 3.0, 2.0, 0.5]]), dim=1).requires_grad_()
    targets = torch.tensor([[0, 0, 1, 0]])
    loss = losses.prototype_contrast(x, targets, bank, temperature=0.1, num_negatives=2)
    remaining = (x.detach() / 0.1)[:, [0, 1, 2]]
    assert loss.item() == pytest.approx(
        F.cross_entropy(remaining, torch.tensor([2])).item(), rel=1e-5
    )
    divergence = losses.prototype_divergence(x, targets, bank, temperature=0.1, num_negatives=2)
    (loss + divergence).backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0, 3] == 0


def test_more_hard_negatives_than_prototypes_are_all_of_them() -> None:
    x, bank, targets = unit(3), unit(4, seed=1), torch.eye(4)[:3]
    some = losses.prototype_contrast(x, targets, bank, temperature=0.05, num_negatives=99)
    assert torch.equal(some, losses.prototype_contrast(x, targets, bank, temperature=0.05))


def test_distances_are_exact_under_half_precision_too() -> None:
    x, labels = 10 + 0.01 * rows(16, 64), torch.arange(4).repeat_interleave(4)
    exact = losses.weighted_regularised_triplet(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses.weighted_regularised_triplet(x, labels).item() == exact.item()


LOSSES = [loss for _, loss in inspect.getmembers(losses, lambda x: hasattr(x, "__wrapped__"))]


def named_inputs(loss: Callable[..., Tensor]) -> dict[str, Any]:
    """Six rows of everything that a loss asks for, features in half precision."""
    labels, targets = torch.arange(6) // 3, torch.eye(6)
    given: dict[str, Any] = dict.fromkeys(("labels", "labels_a", "labels_b"), labels)
    given |= {"groups": torch.arange(6) % 2, "positives": targets.bool(), "targets": targets}
    given |= {"logits": rows(6, 6).half(), "scores": rows(6, 6).half(), "temperature": 0.1}
    given |= {"proposed": targets.bool() | targets.roll(1, 0).bool()}
    features = ("x", "a", "b", "g", "img", "txt", "bank", "anchors", "candidates")
    given |= {name: unit(6, seed=i).half() for i, name in enumerate(features)}
    return {name: given[name] for name in inspect.signature(loss).parameters if name in given}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_inputs_by_keyword_are_inputs(loss: Callable[..., Tensor]) -> None:
    """Widened from half precision and kept out of autocast like those by position."""
    given = named_inputs(loss)
    wide = {
        name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in given.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(**given)
    assert result.dtype == torch.float32
    assert result.item() == loss(**wide).item()
    assert result.item() != 0


def test_a_loss_without_its_inputs_says_which_are_missing() -> None:
    with pytest.raises(TypeError, match="logits"):
        losses.identity_cross_entropy(labels=torch.zeros(2, dtype=torch.int64))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="logits"):
        losses.identity_cross_entropy()  # type: ignore[call-arg]
