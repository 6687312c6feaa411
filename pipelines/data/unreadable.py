"""Finding images that cannot be decoded, before training: by threads here, or on all nodes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from pipelines.data.inputs import Inputs
from pipelines.distributed.collectives import shares
from reid_core.types import Modality

_CHUNK = 2000  # rows of a task


def find_unreadable(
    inputs: Inputs, modality: Modality, rows: Sequence[int] | np.ndarray
) -> list[tuple[int, str]]:
    """Rows that cannot be decoded, with the reason that names the file."""
    broken = []
    for row in rows:
        try:
            inputs.read(modality, np.array([row]))
        except ValueError as error:
            broken.append((int(row), str(error)))
    return broken


def find_in_threads(
    inputs: Inputs, modality: Modality, *, num_threads: int
) -> list[tuple[int, str]]:
    """`find_unreadable` over all rows, in threads of this process."""
    rows = np.arange(inputs.num_rows(modality))
    parts = [rows[part] for part in shares(len(rows), num_threads)]
    with ThreadPoolExecutor(num_threads) as pool:
        broken = pool.map(partial(find_unreadable, inputs, modality), parts)
        return [row for part in broken for row in part]


def find_on_all_nodes(inputs: Inputs, modality: Modality) -> list[tuple[int, str]]:
    """`find_unreadable` over all rows, as Ray tasks."""
    import ray  # absent where a run trains in one process

    rows = np.arange(inputs.num_rows(modality))
    shared, task = ray.put(inputs), ray.remote(find_unreadable)
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    broken = ray.get([task.remote(shared, modality, chunk) for chunk in chunks])
    return [row for part in broken for row in part]
