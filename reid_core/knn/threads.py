"""Blocks of rows over a few threads, for kernels that release the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def over_blocks(work: Callable[[int, int], Result], num_rows: int, block: int) -> list[Result]:
    """Calls `work(start, stop)` for consecutive blocks of rows.

    As many threads as torch uses (`torch.set_num_threads`), so that a process has one place to say
    how much of the machine is its own. Blocks do not depend on the number of threads, so neither
    does any result.

    Args:
        work: a function of the first row and the row after the last; it should spend its time
            outside the interpreter lock.
        num_rows: rows in all.
        block: rows per call, 1 or above.

    Returns:
        The results in the order of the blocks.
    """
    starts = range(0, num_rows, block)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda start: work(start, min(start + block, num_rows)), starts))
