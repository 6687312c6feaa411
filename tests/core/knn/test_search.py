"""The neighbor search against brute force: ties, equal rows, splits, tensors, bad rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode

from reid_core.knn import all_pairs, certified, duplicates, fixed_point, products, screen, search
from reid_core.knn.neighbors import Neighbors
from tests import oracles
from tests.core.rows import unit


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    num_distinct=st.integers(1, 60),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_brute_force_with_many_equal_rows(num_rows, num_distinct, k, seed) -> None:
    rng = np.random.default_rng(seed)
    x = unit(num_distinct, seed=seed)[rng.integers(0, num_distinct, size=num_rows)]
    result = search.nearest(x, k)
    np.testing.assert_array_equal(result.rows, oracles.nearest(x, k))
    cosines = (x[:, None].astype(np.float64) * x[result.rows]).sum(axis=2)
    np.testing.assert_allclose(result.similarity, cosines, atol=1e-6)


def test_exact_ties_between_different_rows_go_by_row() -> None:
    """Axes: all similarities but the own one are 0; each axis occurs twice."""
    x = np.eye(4, dtype=np.float32)[[2, 0, 1, 2, 3, 0, 1, 3]]
    result = search.nearest(x, 5)
    assert result.rows[0].tolist() == [0, 3, 1, 2, 4]
    assert result.rows[7].tolist() == [7, 4, 0, 1, 2]
    np.testing.assert_array_equal(result.rows, oracles.nearest(x, 5))


def test_self_is_first_among_equal_rows() -> None:
    x = np.repeat(unit(1), 50, axis=0)
    result = search.nearest(x, 30)
    assert (result.rows[:, 0] == np.arange(50)).all()
    assert result.rows[40, 1:].tolist() == list(range(29))


@pytest.mark.parametrize("num_tasks", [1, pytest.param(3, marks=pytest.mark.slow), 7])
def test_any_split_over_tasks_gives_the_same_neighbors(num_tasks: int) -> None:
    x = unit(7500, 8)
    x[5000:5400] = x[100:500]
    tasks = [search.open_search(x, 10) for _ in range(num_tasks)]
    num_blocks = tasks[0].num_blocks
    assert num_blocks == 7
    shares = np.array_split(np.arange(num_blocks), num_tasks)
    parts = [task.run(int(b)) for task, share in zip(tasks, shares, strict=True) for b in share]
    split, whole = tasks[-1].join(parts), search.nearest(x, 10)
    np.testing.assert_array_equal(split.rows, whole.rows)
    np.testing.assert_array_equal(split.similarity, whole.similarity)


def test_threads_and_tensors_change_nothing() -> None:
    x = unit(300)
    array, tensor = search.nearest(x, 12), search.nearest(torch.from_numpy(x), 12)
    np.testing.assert_array_equal(array.rows, tensor.rows)
    np.testing.assert_array_equal(array.similarity, tensor.similarity)


def test_product_and_topk_find_what_faiss_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = unit(500)
    with_faiss = search.nearest(x, 20)
    monkeypatch.setattr(products, "faiss", None)
    monkeypatch.setattr(products, "_DEVICE_BYTES", 4 * 500 * 64)  # several chunks to merge
    without = search.nearest(x, 20)
    np.testing.assert_array_equal(with_faiss.rows, without.rows)
    np.testing.assert_array_equal(with_faiss.similarity, without.similarity)


@pytest.mark.parametrize(("num_rows", "k"), [(1, 1), (513, 40), (1300, 600)])
def test_tiles_that_do_not_fit_and_lists_longer_than_a_tile(num_rows: int, k: int) -> None:
    x = unit(num_rows)
    np.testing.assert_array_equal(search.nearest(x, k).rows, oracles.nearest(x, k))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches for features on a device, run on tensors of the CPU, in several blocks."""
    monkeypatch.setattr(products, "on_device", lambda rows: isinstance(rows, torch.Tensor))
    monkeypatch.setattr(duplicates, "on_device", lambda rows: isinstance(rows, torch.Tensor))
    monkeypatch.setattr(screen, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(fixed_point, "_DEVICE_BYTES", 1 << 18)
    monkeypatch.setattr(certified, "_DOUBLE_BYTES", 1 << 18)


def assert_same(first: Neighbors, second: Neighbors) -> None:
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.similarity, second.similarity)


@pytest.mark.parametrize(
    ("num_rows", "width", "k"),
    [(1200, 16, 20), pytest.param(7000, 64, 30, marks=pytest.mark.slow), (9, 8, 9)],
)
def test_a_device_finds_the_same_bits(device: None, num_rows: int, width: int, k: int) -> None:
    x = unit(num_rows, width)
    x[num_rows - num_rows // 10 :] = x[: num_rows // 10]
    assert_same(search.nearest(x, k), search.nearest(torch.from_numpy(x), k))
    first, second = np.random.default_rng(0).integers(0, num_rows, (2, 500))
    pairs = fixed_point.products_of_pairs(x, first, second)
    on_device = fixed_point.products_of_pairs(torch.from_numpy(x), first, second)
    np.testing.assert_array_equal(pairs, on_device)


def rows_around_one_center(spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.ones((400, 32)) + spread * rng.normal(size=(400, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[np.unique(x, axis=0, return_index=True)[1]]


class Tf32(TorchDispatchMode):
    """Rounds the factors of float32 products as tensor cores do, where torch is let to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        products_of = (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)
        if torch.backends.cuda.matmul.allow_tf32 and func.overloadpacket in products_of:
            args = [self.rounded(x) if x.dtype == torch.float32 else x for x in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        """To the 10 bits behind the leading one that remain."""
        bits = x.contiguous().view(torch.int32)
        return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.fixture
def tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("spread", [1.0, 1e-4])
@pytest.mark.parametrize("halves", [False, True])
def test_a_device_that_may_round_to_tf32_finds_the_same_bits(
    device: None, tf32: None, spread: float, halves: bool
) -> None:
    x = 1 + spread * np.random.default_rng(0).normal(size=(600, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    is_second = np.arange(600) % 3 == 0 if halves else None
    host = search.nearest(x, 20, is_second=is_second)
    rows = torch.from_numpy(x)
    with Tf32():
        assert (rows @ rows.T - torch.from_numpy(x @ x.T)).abs().max() > 1e-5
        assert_same(host, search.nearest(rows, 20, is_second=is_second))


@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 1e-7])
def test_rows_too_close_for_the_screen_are_searched_again(
    device: None, spread: float, k: int
) -> None:
    """Rows around one center: half and single precision cannot tell which is nearer."""
    x = rows_around_one_center(spread)
    host = search.nearest(x, k)
    scores = fixed_point.exact_products(x, x, np.tile(np.arange(len(x)), (len(x), 1)))
    scores[np.arange(len(x)), np.arange(len(x))] = 2
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(host.rows, expected)
    assert_same(host, search.nearest(torch.from_numpy(x), k))


@pytest.mark.parametrize("on_device", [False, True])
def test_only_rows_whose_candidates_are_not_proven_are_searched_again(
    device: None, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[int] = []
    in_double = certified.in_double

    def counted(queries: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        again.append(len(queries))
        return in_double(queries, *others)

    monkeypatch.setattr(certified, "in_double", counted)
    close, apart = rows_around_one_center(1e-6), unit(400, 32)
    search.nearest(torch.from_numpy(close) if on_device else close, 30)
    assert sum(again) > len(close) / 2
    again.clear()
    search.nearest(torch.from_numpy(apart) if on_device else apart, 30)
    assert not again


def test_ties_at_the_last_place_go_by_row_on_a_device_too(device: None) -> None:
    """More axes than candidates: every row ties with nearly all others."""
    x = np.eye(200, dtype=np.float32)
    host = search.nearest(x, 5)
    assert host.rows[150].tolist() == [150, 0, 1, 2, 3]
    assert_same(host, search.nearest(torch.from_numpy(x), 5))


@pytest.mark.parametrize("width", [16, 512])
def test_the_bound_of_the_screen_holds(width: int) -> None:
    x = torch.from_numpy(unit(600, width))
    half = screen.HalfScreen(x).largest(x, 600)
    approximate = screen.HalfScreen(x)
    rounded = approximate._rows.double() / screen._SCALE
    off = (rounded @ rounded.T - x.double() @ x.double().T).abs().amax(dim=1)
    assert (off < half.error).all()
    assert (half.error < 5e-3).all()


@pytest.mark.parametrize(("num", "count"), [(64, 64), (100, 5), (4099, 7), (5000, 64)])
def test_the_largest_of_groups_are_the_largest(num: int, count: int) -> None:
    x = torch.from_numpy(np.random.default_rng(0).permuted(np.tile(np.arange(num), (8, 1)), axis=1))
    value, column = screen._largest(x.float(), count)
    assert (value.sort(dim=1).values == torch.arange(num - count, num)).all()
    assert (x.gather(1, column) == value).all()


def test_exact_products_do_not_depend_on_the_order_of_the_sum() -> None:
    x, order = unit(50, 2048), np.random.default_rng(0).permutation(2048)
    every = np.tile(np.arange(50, dtype=np.int32), (50, 1))
    exact = fixed_point.exact_products(x, x, every)
    y = np.ascontiguousarray(x[:, order])
    np.testing.assert_array_equal(exact, fixed_point.exact_products(y, y, every))
    np.testing.assert_allclose(exact, x.astype(np.float64) @ x.T.astype(np.float64), atol=1e-12)


@pytest.mark.parametrize("count", [1, 11, 64, 100])
def test_the_largest_products_in_batches_are_those_of_all_rows(count: int) -> None:
    rows, queries = unit(64, 8, seed=0), unit(5, 8, seed=1)
    batches = (rows[start:stop] for start, stop in [(0, 1), (1, 30), (30, 30), (30, 64)])
    largest = products.largest_in_batches(queries, batches, count)
    right = -np.sort(-(queries.astype(np.float64) @ rows.T), axis=1)[:, :count]
    np.testing.assert_allclose(largest, right, atol=1e-6)


def test_products_of_pairs() -> None:
    x, rng = unit(50), np.random.default_rng(0)
    first, second = rng.integers(0, 50, size=(2, 9000))
    result = fixed_point.products_of_pairs(x, first, second)
    np.testing.assert_allclose(result, (x[first] * x[second]).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "row 7 is zero"),
        (np.nan, "row 7 is not finite"),
        (3.0, "row 7 has length 12"),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_row_without_unit_length_is_named(value, message, as_tensor) -> None:
    x = unit(20)
    x[7] = value
    x[9] = value
    with pytest.raises(ValueError, match=rf"{message}.*\(2 such rows\)"):
        search.nearest(torch.from_numpy(x) if as_tensor else x, 5)


def test_no_row_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 8\)"):
        search.nearest(np.empty((0, 8), dtype=np.float32), 5)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        search.nearest(unit(3), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_finds_the_same_rows() -> None:
    x = unit(3000, 64)
    x[2000:2100] = x[:100]
    assert_same(search.nearest(x, 30), search.nearest(torch.from_numpy(x).cuda(), 30))


def test_searches_at_the_same_time_give_the_threads_of_blas_back() -> None:
    def threads() -> list[int]:
        return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]

    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        # the one that begins first ends first
        first, second = all_pairs._one_blas_thread(), all_pairs._one_blas_thread()
        with ExitStack() as last:
            with first:
                last.enter_context(second)
                assert set(threads()) == {1}
            assert set(threads()) == {1}
        assert threads() == before
