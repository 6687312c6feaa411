"""The memory against its row-by-row oracle, and the swaps against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from reid_core import memory
from reid_core.memory import ClusterMemory
from tests import oracles
from tests.waits import operations_of, waits_of


def unit(num: int, width: int = 8, *, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(num, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def fresh(num: int = 4, *, momentum: float = 0.1) -> ClusterMemory:
    return ClusterMemory(unit(num), momentum=momentum, temperature=0.05)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), max_size=24),
    momentum=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_update_is_the_sequential_one(labels: list[int], momentum: float) -> None:
    bank, x = fresh(momentum=momentum), unit(len(labels), seed=1)
    before = bank.bank.clone()
    bank.update(x, torch.tensor(labels, dtype=torch.int64))
    expected = oracles.update_bank(before, x, torch.tensor(labels), momentum)
    torch.testing.assert_close(bank.bank, expected, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=24),
    spare=st.integers(0, 3),
    momentum=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_what_a_device_runs_is_the_sequential_one_too(
    labels: list[int], spare: int, momentum: float
) -> None:
    """A slot for every row, since nobody knows how many labels there are, and turns to spare."""
    given_labels, x = torch.tensor(labels), unit(len(labels), seed=1)
    memory = fresh(momentum=momentum)
    most = max(labels.count(label) for label in range(4)) + spare
    memory._take_turns(x, given_labels, most=most, num_slots=len(labels))
    expected = oracles.update_bank(unit(4), x, given_labels, momentum)
    torch.testing.assert_close(memory.bank, expected, atol=1e-6, rtol=0)


def test_what_a_device_runs_waits_for_nothing() -> None:
    memory, x, labels = fresh(), unit(6, seed=1), torch.tensor([3, 0, -1, 3, 1, 3])
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        memory._take_turns(x, labels, most=3, num_slots=len(labels))
    assert operations_of(watched)["aten::sort"] == 1
    assert not waits_of(operations_of(watched))


def test_a_label_with_more_rows_than_were_planned_is_an_error() -> None:
    """A device would stop, so what is tested on the CPU is what a device is told."""
    memory, x, labels = fresh(), unit(3, seed=1), torch.tensor([1, 1, -1])
    with pytest.raises(ValueError, match="a label has 2 rows in one batch, not 1 at most"):
        memory.update(x, labels, most=1)
    memory.update(x, labels, most=2)


def test_update_needs_one_label_per_row_and_none_that_is_no_row_of_the_bank() -> None:
    bank = fresh()
    with pytest.raises(ValueError, match=r"shape \(3,\) for 8 rows"):
        bank.update(unit(8), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="label -2"):  # not the last prototype but one
        bank.update(unit(2), torch.tensor([0, -2]))
    for label in (4, 7):
        with pytest.raises(ValueError, match=rf"label {label}: the bank has 4 rows.* 0 to 3"):
            bank.update(unit(2), torch.tensor([3, label]))
    torch.testing.assert_close(bank.bank, unit(4))


def test_order_within_a_label_counts() -> None:
    x, labels = unit(2, seed=1), torch.tensor([0, 0])
    forward, backward = fresh(), fresh()
    forward.update(x, labels)
    backward.update(x.flip(0), labels)
    assert not torch.allclose(forward.bank, backward.bank)


def test_momentum_one_keeps_and_zero_copies() -> None:
    x, labels = unit(2, seed=1), torch.tensor([3, 1])
    remaining, copied = fresh(momentum=1.0), fresh(momentum=0.0)
    remaining.update(x, labels)
    copied.update(x, labels)
    torch.testing.assert_close(remaining.bank, unit(4))
    torch.testing.assert_close(copied.bank[[3, 1]], x)


def test_no_gradient_reaches_the_bank_and_the_input_bank_is_not_shared() -> None:
    given_bank = unit(4)
    bank = ClusterMemory(given_bank, momentum=0.1, temperature=0.05)
    x = unit(3, seed=1).requires_grad_()
    bank.scores(x).sum().backward()
    bank.update(x, torch.tensor([0, 1, 2]))
    assert not bank.bank.requires_grad
    assert x.grad is not None
    torch.testing.assert_close(given_bank, unit(4))


def test_scores_are_cosines_over_the_temperature() -> None:
    bank, x = fresh(), unit(2, seed=1)
    torch.testing.assert_close(bank.scores(x), x @ unit(4).T / 0.05)


def test_state_goes_round_into_a_memory_of_another_size() -> None:
    source, target = fresh(4), fresh(2, momentum=0.9)
    state = source.state_dict()
    source.update(unit(1, seed=1), torch.tensor([0]))
    target.load_state_dict(state)
    torch.testing.assert_close(target.bank, unit(4))
    assert target.momentum == 0.1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum is"):
        ClusterMemory(unit(2), momentum=1.5, temperature=0.05)
    with pytest.raises(ValueError, match="temperature is"):
        ClusterMemory(unit(2), momentum=0.1, temperature=0.0)


PAIRS = np.array([[0, 2], [2, 0], [3, 4]])


def test_swap_reads_old_values_on_both_sides() -> None:
    a, b = unit(5), unit(6, seed=1)
    new_a, new_b = memory.swap(a, b, PAIRS)
    torch.testing.assert_close(new_a[0], F.normalize(0.1 * a[0] + 0.9 * b[2], dim=0))
    torch.testing.assert_close(new_b[2], F.normalize(0.1 * b[2] + 0.9 * a[0], dim=0))
    torch.testing.assert_close(new_a[[1, 4]], a[[1, 4]])
    torch.testing.assert_close(a, unit(5))


def test_swap_with_keep_zero_exchanges_and_twice_restores() -> None:
    a, b = unit(5), unit(6, seed=1)
    once = memory.swap(a, b, PAIRS, keep=0.0)
    twice = memory.swap(*once, PAIRS, keep=0.0)
    torch.testing.assert_close(once[0][3], b[4])
    torch.testing.assert_close(twice[0], a)
    torch.testing.assert_close(twice[1], b)


@pytest.mark.parametrize("alias", [False, True])
def test_whole_and_batch_swaps_equal_the_oracle(alias: bool) -> None:
    a, b = unit(5), unit(6, seed=1)
    whole = memory.swap_sequential if alias else memory.swap
    rows = memory.swap_rows_sequential if alias else memory.swap_rows
    everyone = set(range(6))
    expected = oracles.swap_in_batch(a, b, PAIRS, everyone, everyone, keep=0.1, alias=alias)
    torch.testing.assert_close(whole(a, b, PAIRS), expected)
    labels_a, labels_b = torch.tensor([3, 3, -1, 0]), torch.tensor([0, 4, 5, -1])
    expected = oracles.swap_in_batch(a, b, PAIRS, {0, 3}, {0, 4, 5}, keep=0.3, alias=alias)
    torch.testing.assert_close(rows(a, b, PAIRS, labels_a, labels_b, keep=0.3), expected)


def test_share_gives_one_prototype_to_a_pair() -> None:
    a, b = unit(5), unit(6, seed=1)
    new_a, new_b = memory.share(a, b, PAIRS)
    torch.testing.assert_close(new_a[PAIRS[:, 0]], new_b[PAIRS[:, 1]])
    torch.testing.assert_close(new_a[0], F.normalize(a[0] + b[2], dim=0))
    torch.testing.assert_close(new_a[1], a[1])


def test_swaps_take_no_pairs_at_all() -> None:
    a, b = unit(2), unit(3, seed=1)
    none = np.empty((0, 2), dtype=np.int64)
    for new_a, new_b in (memory.swap(a, b, none), memory.share(a, b, none)):
        torch.testing.assert_close(new_a, a)
        torch.testing.assert_close(new_b, b)
