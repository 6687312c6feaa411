"""The neighbor search by processes that hold a share of the rows each, over gloo.

What docs/scaling.md measures beside the searchers of `training.distributed_knn`: the shares are
gathered, every process searches its own blocks, and the neighbors are those of one process, bit for
bit, on the CPU and in the branches for a device.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipelines.distributed import collectives
from reid_core.knn import certified, duplicates, fixed_point, products, screen
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.search import nearest, open_search
from tests.core.rows import unit
from tests.pipelines.processes import free_port, join_group

NUM_ROWS, WIDTH, K = 4000, 16, 12
CASES = [(halves, on_device) for halves in (False, True) for on_device in (False, True)]


def make_rows() -> np.ndarray:
    """A quarter of them on a lattice, where cosines are quarters and tie; a tenth stands twice."""
    rng = np.random.default_rng(0)
    x = unit(NUM_ROWS, WIDTH)
    for row in x[: NUM_ROWS // 4]:
        row[:] = 0
        row[rng.choice(WIDTH, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    x[-NUM_ROWS // 10 :] = x[: NUM_ROWS // 10]
    return x[rng.permutation(NUM_ROWS)]


def is_second(halves: bool) -> np.ndarray | None:
    return np.arange(NUM_ROWS) % 5 < 2 if halves else None


def stand_in_for_a_device() -> None:
    """Tensors take the branches for a device from here on, in several blocks."""
    process = pytest.MonkeyPatch()
    for module in (products, duplicates):
        process.setattr(module, "on_device", lambda rows: isinstance(rows, torch.Tensor))
    process.setattr(screen, "_BLOCK_BYTES", 1 << 20)
    process.setattr(fixed_point, "_DEVICE_BYTES", 1 << 18)
    process.setattr(certified, "_DOUBLE_BYTES", 1 << 18)


def search_together(share: torch.Tensor, halves: bool, on_device: bool) -> Neighbors:
    whole = collectives.gather_shares(share, NUM_ROWS)
    features = whole if on_device else whole.numpy()
    search = open_search(features, K, is_second=is_second(halves))
    own = collectives.slice_of(search.num_blocks)
    parts = [search.run(block) for block in range(own.start, own.stop)]
    return search.join([b for one in collectives.of_every_process(parts) for b in one])


def worker(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    stand_in_for_a_device()
    join_group(rank, world, port, minutes=5)
    share = torch.from_numpy(make_rows()[collectives.slice_of(NUM_ROWS)])
    for number, case in enumerate(CASES):
        result = search_together(share, *case)
        path = folder / f"{number}-{rank}.npz"
        np.savez(path, rows=result.rows, similarity=result.similarity)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_blocks_of_several_processes_are_the_search_of_one(world: int, tmp_path: Path) -> None:
    spawn(worker, args=(world, free_port(), tmp_path), nprocs=world)
    x = make_rows()
    for number, (halves, _) in enumerate(CASES):
        alone = nearest(x, K, is_second=is_second(halves))
        for rank in range(world):
            with np.load(tmp_path / f"{number}-{rank}.npz") as together:
                np.testing.assert_array_equal(together["rows"], alone.rows)
                np.testing.assert_array_equal(together["similarity"], alone.similarity)


def test_many_places_are_decided_by_the_order_of_rows() -> None:
    """What the rows of the test above are for."""
    x = make_rows()
    last = nearest(x, K + 1).similarity[:, K - 1 :]
    assert (last[:, 0] == last[:, 1]).mean() > 0.05
    assert len(np.unique(x, axis=0)) < 0.95 * len(x)
