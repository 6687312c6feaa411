"""The stream of batches of a run in one process: `stream` without Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipelines.data.batches import PlannedLines, columns_of, training_batches
from pipelines.data.decode import DecodeAndAugment
from pipelines.training.epoch import EpochStart
from pipelines.training.job import Job
from reid_core.types import Batch, Modality


def batches(job: Job, start: EpochStart, *, readers: int = 1) -> Iterator[dict[Modality, Batch]]:
    """All batches of an epoch; `readers` threads decode and augment the next ones."""
    plan, inputs = start.plan, job.train
    decode = DecodeAndAugment(
        height=inputs.height,
        width=inputs.width,
        transforms=job.transforms,
        max_megapixels=inputs.max_megapixels,
        decoded=inputs.decoded,
    )

    def lines(number: int) -> dict[str, np.ndarray]:
        one = slice(number, number + 1)
        return decode(columns_of(PlannedLines.of(plan, inputs, one, rank=0, world=1).block()))

    _ = plan.replacements  # computed once, before several threads ask for it
    return training_batches(
        _ahead(lines, range(plan.first, plan.num_batches), readers),
        shape=plan.shape,
        rank=0,
        world=1,
        tokens=inputs.tokens,
        first=plan.first,
    )


def _ahead(
    work: Callable[[int], dict[str, np.ndarray]], numbers: range, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """work(number) of each in order, with two more under way than there are threads."""
    pool = ThreadPoolExecutor(threads, "reader")
    waiting: deque[Future[dict[str, np.ndarray]]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(work, number))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
