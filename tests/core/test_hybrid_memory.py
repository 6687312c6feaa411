"""The two banks of BMIL: by hand, against a loop, and against the plain memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from reid_core.memory import ClusterMemory, HybridMemory
from tests import oracles


def unit(num: int, width: int = 8, *, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=1)


def test_update_by_hand() -> None:
    memory = HybridMemory(torch.tensor([[1.0, 0.0]]), momentum=0.1)
    rows, labels = torch.eye(2), torch.zeros(2, dtype=torch.int64)
    memory.update(rows, labels)
    np.testing.assert_allclose(memory.mean, [[0.773957, 0.633238]], atol=1e-6)
    np.testing.assert_allclose(memory.hard, [[0.110432, 0.993884]], atol=1e-6)
    # the hardest row is chosen by the mean bank, not by the hard one
    other = HybridMemory(torch.tensor([[1.0, 0.0]]), momentum=0.1)
    other.hard = torch.tensor([[0.0, 1.0]])
    other.update(rows, labels)
    np.testing.assert_allclose(other.hard, [[0.0, 1.0]], atol=1e-6)


def test_equals_the_loop_whatever_the_order_of_rows() -> None:
    x, labels = unit(40), torch.randint(-1, 6, (40,), generator=torch.Generator().manual_seed(1))
    memory = HybridMemory(unit(8, seed=2), momentum=0.1)
    memory.hard = unit(8, seed=3)
    mean, hard = memory.mean.clone(), memory.hard.clone()
    expected = oracles.hybrid_update(
        mean.numpy().astype(np.float64), hard.numpy(), x.numpy(), labels.numpy(), 0.1
    )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    for rows in (torch.arange(40), order):
        memory.mean, memory.hard = mean.clone(), hard.clone()
        memory.update(x[rows], labels[rows])
        np.testing.assert_allclose(memory.mean, expected[0], atol=1e-6)
        np.testing.assert_allclose(memory.hard, expected[1], atol=1e-6)
    # classes without a row stay, to the last bit
    assert torch.equal(memory.mean[6:], mean[6:])
    assert torch.equal(memory.hard[6:], hard[6:])


def test_one_row_a_class_is_the_plain_update_of_both_banks() -> None:
    x, labels = unit(5), torch.tensor([3, -1, 0, 4, 1])
    plain = ClusterMemory(unit(5, seed=1), momentum=0.1, temperature=0.05)
    hybrid = HybridMemory(unit(5, seed=1), momentum=0.1)
    plain.update(x, labels)
    hybrid.update(x, labels)
    torch.testing.assert_close(hybrid.mean, plain.bank)
    torch.testing.assert_close(hybrid.hard, plain.bank)


@pytest.mark.parametrize("label", [-2, 2])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    memory = HybridMemory(unit(2), momentum=0.1)
    with pytest.raises(ValueError, match=f"label {label}: the bank has 2 rows"):
        memory.update(unit(2, seed=1), torch.tensor([0, label]))
    torch.testing.assert_close(memory.mean, unit(2))
