"""What decides between the epochs of a job: a memory bank, or a planner without features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from pipelines.data.prepare import Prepared
from pipelines.training.job import Job
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.planner import Planner
from reid_core.knn.neighbors import Search
from reid_core.knn.search import nearest

EpochMaker: TypeAlias = MemoryBank | Planner
_CPU = torch.device("cpu")


def epoch_maker_of(
    job: Job, prepared: Prepared, *, search: Search = nearest, device: torch.device = _CPU
) -> Callable[[], EpochMaker]:
    """What makes it, in the process where it is to live.

    Args:
        job, prepared: the work, and its data set; of images nothing but arrays goes along.
        search, device: see `MemoryBank`.
    """
    if not job.method.reads_features:
        assert job.identities is not None
        return partial(Planner, job.config, job.identities)
    inputs = job.method.inputs
    return partial(
        MemoryBank,
        job.config,
        prepared.pids(inputs),
        identities=job.identities,
        owners=job.train.owners,
        cameras=prepared.cameras(inputs),
        search=search,
        device=device,
    )
