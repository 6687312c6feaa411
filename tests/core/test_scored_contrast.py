"""The prototypes' cross entropy with a total number of scored ones and weights of rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from reid_core import losses

# scores 2, 1, 0 at temperature 1; prototypes of labels 0, 0, 1
X, BANK = torch.tensor([[1.0, 0, 0]]), torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 1, 1]])
LABELS = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("label", "num_scored", "value"),
    [
        (0, None, 0.907606),
        (0, 2, 0.813262),
        (1, None, 2.407606),
        (1, 2, 2.126928),
        (0, 9, 0.907606),
    ],
)
def test_global_loss_by_hand(label: int, num_scored: int | None, value: float) -> None:
    targets = torch.eq(LABELS, label).float()[None]
    loss = losses.scored_contrast(X, targets, BANK, temperature=1.0, num_scored=num_scored)
    assert float(loss) == pytest.approx(value, abs=1e-6)


def test_one_positive_and_no_cut_is_the_cluster_contrast() -> None:
    x, bank = torch.randn(6, 4), torch.randn(5, 4)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    targets = functional.one_hot(labels.clamp(min=0), 5) * (labels >= 0)[:, None]
    expected = losses.cluster_contrast(x, labels, bank, temperature=0.5)
    for num_scored in (None, 5, 50):
        loss = losses.scored_contrast(
            x, targets.float(), bank, temperature=0.5, num_scored=num_scored
        )
        torch.testing.assert_close(loss, expected)


def test_as_many_are_scored_as_asked_for_whatever_the_number_of_positives() -> None:
    x, bank = torch.randn(4, 8), torch.randn(30, 8)
    targets = torch.zeros(4, 30)
    targets[0, 3] = targets[1, 5] = targets[1, 6] = targets[2, 0] = 1
    bank.requires_grad_()
    for row, wanted in ((0, 10), (1, 10), (2, 10)):
        loss = losses.scored_contrast(
            x[row : row + 1], targets[row : row + 1], bank, temperature=0.5, num_scored=10
        )
        (gradient,) = torch.autograd.grad(loss, bank)
        assert int((gradient.abs().sum(dim=1) > 0).sum()) == wanted
    nothing = losses.scored_contrast(x[3:], targets[3:], bank, temperature=0.5, num_scored=10)
    assert nothing.item() == 0


def test_weights_scale_rows_and_their_gradients_but_not_the_number_of_rows() -> None:
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    bank, q = torch.randn(4, 8, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)
    q = q / q.sum(dim=1, keepdim=True)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.1], dtype=torch.float64)
    loss = losses.scored_contrast(x, q, bank, temperature=0.05, weights=weights)
    (gradient,) = torch.autograd.grad(loss, x)
    softmax = functional.softmax(x.detach() @ bank.T / 0.05, dim=1)
    expected = weights[:, None] * (softmax - q) @ bank / (0.05 * 5)
    torch.testing.assert_close(gradient, expected)
