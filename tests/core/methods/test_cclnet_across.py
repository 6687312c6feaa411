"""What draws CCLNet's images to the other modality beside the swap: votes, and contradictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from reid_core import losses
from reid_core.knn.search import nearest
from reid_core.memory import ClusterMemory
from reid_core.method import BetweenEpochs
from reid_core.methods.cclnet import between_epochs as cclnet
from reid_core.methods.cclnet import settings
from reid_core.methods.cclnet.across import Across, cross_votes
from reid_core.methods.cclnet.settings import Config
from reid_core.models import backbones
from tests.core.cclnet_case import (
    INFRARED,
    INPUTS,
    VISIBLE,
    batch_of,
    epoch_of,
    opened,
    small_config,
    step,
)

CPU = torch.device("cpu")


def test_exclusion_by_hand() -> None:
    """p = (.5, .3, .2): proposed 0 and 1, class 2 is pushed away; proposed 2, nothing is."""
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).requires_grad_()
    loss = losses.exclusion(scores, torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(0.223144, abs=1e-6)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0, 2] > 0 > scores.grad[0, :2].max()
    assert losses.exclusion(scores, torch.tensor([[False, False, True]])).item() == 0
    twice = scores.detach().repeat(3, 1)
    proposed = torch.tensor([[True, True, False], [False] * 3, [False, False, True]])
    assert losses.exclusion(twice, proposed).item() == pytest.approx(0.223144 / 2, abs=1e-6)
    nobody = losses.exclusion(scores, torch.zeros(1, 3, dtype=torch.bool))
    assert nobody.item() == 0
    nobody.backward()  # a worker without such a row takes part in the backward pass


def around(axes: list[int]) -> np.ndarray:
    """Unit rows near the given axes of eight."""
    noise = 0.05 * np.random.default_rng(sum(axes)).normal(size=(len(axes), 8))
    rows = np.eye(8)[axes] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_votes_of_the_other_modality_by_hand() -> None:
    """Visible 0 is matched with infrared 1; of its four neighbors three are there, one is not.

    J = (1 / (4 - 1 + 2), 3 / (4 - 3 + 3)) = (.2, .75); the row of the cluster without a partner
    takes no part, nor does anybody in a vote of outliers alone.
    """
    config = small_config(
        refine={"labels": "voted", "weights": True, "neighbors": 4, "cross": 3, "hard_share": 0.7}
    )
    features = {VISIBLE: around([0, 1, 5]), INFRARED: around([0, 0, 0, 0, 1, 5, 5, 5, 5])}
    labels = {
        VISIBLE: np.array([0, 1, 0]),
        INFRARED: np.array([1, 1, 1, 0, 0, -1, -1, -1, -1]),
    }
    config = config.model_copy(update={"refine": config.refine.model_copy(update={"neighbors": 4})})
    # the smaller modality has three rows: lift the limit that it sets by doubling it
    features[VISIBLE] = np.concatenate([features[VISIBLE], around([7, 7])])
    labels[VISIBLE] = np.concatenate([labels[VISIBLE], [-1, -1]])
    arrays, counts = cross_votes(config, features, labels, np.array([[0, 1]]), search=nearest)
    assert arrays["across.partners.visible"].tolist() == [1, -1]
    assert arrays["across.partners.infrared"].tolist() == [-1, 0]
    shares = dict(
        zip(
            arrays["across.target_columns.visible"][0].tolist(),
            arrays["across.target_shares.visible"][0].tolist(),
            strict=True,
        )
    )
    vote = 0.75 / 0.95
    assert shares[1] == pytest.approx(0.7 + 0.3 * vote)
    assert shares[0] == pytest.approx(0.3 * (1 - vote))
    weights = arrays["across.weights.visible"]
    assert weights[0] == pytest.approx(np.exp(-10 * (1 - vote) ** 2), rel=1e-5)
    assert weights[1:].tolist() == [0, 0, 0, 0]
    assert np.isfinite(arrays["across.target_shares.visible"]).all()
    assert counts["across_confidence_visible"] == pytest.approx(weights[:3:2].mean())


def test_the_cross_term_takes_turns_and_leaves_the_banks_alone() -> None:
    """Gradient with respect to a row: w (softmax - q) bank / (0.05 B), B rows with a partner."""
    config = small_config(
        refine={"labels": "voted", "weights": True, "neighbors": 3, "cross": 3},
        swap={"start_epoch": 0},
    )
    epoch = epoch_of(config, "align")
    across = Across.of(config, epoch.for_workers({}), 0, CPU)
    odd = Across.of(config, epoch.for_workers({}), 1, CPU)
    assert across is not None
    assert odd is not None
    assert (across.modality, odd.modality) == (VISIBLE, INFRARED)
    banks = {
        m: ClusterMemory(torch.tensor(epoch.prototypes[m]), momentum=0.1, temperature=0.05)
        for m in INPUTS
    }
    rows = {m: torch.arange(10) for m in INPUTS}
    labels = {m: torch.from_numpy(epoch.labels[m][:10]) for m in INPUTS}
    x = {m: functional.normalize(torch.randn(10, 384), dim=1).requires_grad_() for m in INPUTS}
    terms = across.terms(config, x, labels, banks, rows=rows)
    assert list(terms) == ["visible_across"]
    term = terms["visible_across"]
    given = across._partners_of(labels[VISIBLE])
    assert (int(term.count), term.weight) == (int((given != -1).sum()), 3)
    term.mean.backward()
    assert across.votes is not None
    q = across.votes.targets(rows[VISIBLE], given, 4, config.refine)
    p = torch.softmax(x[VISIBLE].detach() @ banks[INFRARED].bank.T / 0.05, dim=1)
    factor = across.votes.weights[:10, None] / (0.05 * term.count)
    expected = factor * (given != -1)[:, None] * ((p - q) @ banks[INFRARED].bank)
    torch.testing.assert_close(x[VISIBLE].grad, expected)
    assert x[INFRARED].grad is None

    before = banks[INFRARED].bank.clone()
    across.update(config, banks, x, labels, repeats={})
    assert torch.equal(banks[INFRARED].bank, before)
    moving = config.model_copy(
        update={"refine": config.refine.model_copy(update={"cross_updates": True})}
    )
    across.update(moving, banks, x, labels, repeats={})
    named = torch.unique(given[given != -1])
    moved = (banks[INFRARED].bank != before).any(dim=1).nonzero().ravel()
    assert torch.equal(moved, named)


def test_a_term_across_needs_pairs_and_no_swap(clip: backbones.Backbone) -> None:
    refine = {"cross": 3, "neighbors": 6}
    config = small_config(image_to_text=0, refine=refine, swap={"when": "never", "start_epoch": 0})
    assert settings.is_ever_coupled(config)
    plain = small_config(image_to_text=0, swap={"when": "never"})
    coupled, alone = epoch_of(config, "align"), epoch_of(plain, "align")
    assert len(coupled.pairs) > len(alone.pairs) == 0
    for m in INPUTS:  # nothing was swapped
        np.testing.assert_array_equal(coupled.prototypes[m], alone.prototypes[m])
    stage = opened(config, "align", clip)
    stage.begin_epoch(0, coupled.for_workers({}))
    assert torch.isfinite(step(stage, batch_of(coupled)))


def test_contradictory_proposals_only_exclude(clip: backbones.Backbone) -> None:
    """Every contradiction is in the mask, from the epoch that was asked for."""
    config = small_config(
        image_to_text=0,
        swap={"when": "never", "start_epoch": 0},
        matching={"method": "consistent", "shared": True, "exclusion": 0.25, "exclusion_from": 1},
    )
    epoch = epoch_of(config, "align")
    contradictory = epoch.arrays["across.contradictory"]
    assert len(contradictory)
    consistent = set(map(tuple, epoch.pairs.tolist()))
    assert not consistent & set(map(tuple, contradictory.tolist()))
    early, late = (Across.of(config, epoch.for_workers({}), n, CPU) for n in (0, 1))
    assert early is not None
    assert early.proposed is None
    assert late is not None
    assert late.proposed is not None
    assert late.proposed.nonzero().tolist() == sorted(map(list, contradictory.tolist()))
    stage = opened(config, "align", clip)
    stage.begin_epoch(1, epoch.for_workers({}))
    batch = batch_of(epoch)
    terms = stage.terms(stage.module, batch, lambda x: x)
    assert terms["visible_exclusion"].weight == 0.25
    assert "visible_across" not in terms
    with pytest.raises(ValidationError, match="contradictory proposals"):
        Config.model_validate({"matching": {"exclusion": 0.25}})


def test_wrong_labels_are_trusted_less_than_right_ones() -> None:
    """A fifth of the labels is drawn anew: the votes tell them apart (area under the curve)."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(20), 10)
    centers = rng.normal(size=(20, 32))
    x = centers[truth] + 0.5 * rng.normal(size=(200, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    wrong = rng.random(200) < 0.2
    labels = np.where(wrong, (truth + rng.integers(1, 20, 200)) % 20, truth)
    config = small_config(refine={"weights": True, "neighbors": 10})
    context = BetweenEpochs("align", 0, 0, features=dict.fromkeys(INPUTS, x))
    epoch = cclnet.begin_epoch(config, context, {VISIBLE: labels, INFRARED: truth})
    weights = epoch.arrays["weights.visible"]
    above = (weights[~wrong][:, None] > weights[wrong][None]).mean()
    assert above > 0.95
    assert weights[wrong].mean() < 0.2 < weights[~wrong].mean()
