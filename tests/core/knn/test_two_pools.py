"""Neighbors from either of two modalities against brute force: ties, equal rows, splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_core.knn import search, two_pools
from tests import oracles
from tests.core.rows import unit


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(20, 70),
    num_distinct=st.integers(1, 70),
    half=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_brute_force_with_many_equal_rows(num_rows, num_distinct, half, seed) -> None:
    rng = np.random.default_rng(seed)
    x = unit(num_distinct, seed=seed)[rng.integers(0, num_distinct, size=num_rows)]
    is_second = rng.permutation(num_rows) < rng.integers(half, num_rows - half + 1)
    halves = search.nearest(x, 2 * half, is_second=is_second)
    np.testing.assert_array_equal(halves.rows, oracles.nearest_in_each(x, is_second, 2 * half))
    cosines = (x[:, None].astype(np.float64) * x[halves.rows]).sum(axis=2)
    np.testing.assert_allclose(halves.similarity, cosines, atol=1e-6)
    merged = two_pools.merged_by_similarity(halves)
    np.testing.assert_array_equal(merged.rows[:, 0], np.arange(num_rows))
    # equal to the last bit only where the float32 similarities differ
    if num_distinct > num_rows // 2:
        np.testing.assert_array_equal(np.sort(merged.rows, axis=1), np.sort(halves.rows, axis=1))
        assert (np.diff(merged.similarity[:, 1:], axis=1) <= 0).all()


@pytest.mark.slow
def test_blocks_tensors_and_several_tiles_change_nothing() -> None:
    """More rows than a tile and a block hold on either side, and some that are equal."""
    x, is_second = unit(4200, 8), np.random.default_rng(1).random(4200) < 0.35
    x[3000:3100] = x[:100]
    here = search.nearest(x, 10, is_second=is_second)
    np.testing.assert_array_equal(here.rows, oracles.nearest_in_each(x, is_second, 10))
    blocks = search.open_search(torch.from_numpy(x), 10, is_second=is_second)
    spread = blocks.join([blocks.run(block) for block in range(blocks.num_blocks)])
    np.testing.assert_array_equal(spread.rows, here.rows)
    np.testing.assert_array_equal(spread.similarity, here.similarity)


def test_alternating_lists_are_balanced_wherever_they_are_cut() -> None:
    x, is_second = unit(90), np.random.default_rng(1).random(90) < 0.4
    halves = search.nearest(x, 10, is_second=is_second)
    turns = two_pools.alternating(halves, is_second).rows
    assert (turns[:, 0] == np.arange(90)).all()
    assert (is_second[turns[:, 0::2]] == is_second[:, None]).all()
    assert (is_second[turns[:, 1::2]] != is_second[:, None]).all()
    np.testing.assert_array_equal(np.sort(turns, axis=1), np.sort(halves.rows, axis=1))


def test_a_mask_may_be_of_numbers_and_has_the_rows_length() -> None:
    x, is_second = unit(30), np.arange(30) % 3 == 0
    expected = search.nearest(x, 6, is_second=is_second)
    numbers = search.nearest(x, 6, is_second=is_second.astype(np.int64))
    np.testing.assert_array_equal(numbers.rows, expected.rows)
    with pytest.raises(ValueError, match=r"shape \(29,\) for 30 rows"):
        search.nearest(x, 6, is_second=is_second[1:])


def test_both_modalities_and_an_even_k_are_needed() -> None:
    with pytest.raises(ValueError, match="k1 is 5; it must be even"):
        search.nearest(unit(20), 5, is_second=np.arange(20) < 10)
    with pytest.raises(ValueError, match=r"second modality.*18 and 2 rows, and k1=6.*lower k1"):
        search.nearest(unit(20), 6, is_second=np.arange(20) < 2)
    with pytest.raises(ValueError, match=r"first modality.*0 and 20 rows"):
        search.nearest(unit(20), 2, is_second=np.ones(20, dtype=bool))
