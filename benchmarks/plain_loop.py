"""The rival: the same training in one process, with a torch DataLoader and without Ray.

It shares the loop, the bank and the transforms with the product, so a comparison measures the
machinery alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.config.run import RunConfig
from pipelines.data.batches import training_batches
from pipelines.data.datasource import PlanDatasource
from pipelines.data.decode import DecodeAndAugment, Transforms
from pipelines.data.inputs import Inputs
from pipelines.data.plan import Plan
from pipelines.data.prepare import Prepared
from pipelines.runs import runlog
from pipelines.training.epoch import EpochStart
from pipelines.training.epoch_maker import epoch_maker_of
from pipelines.training.job import Job
from pipelines.training.loop import TrainingLoop
from pipelines.training.progress import Progress
from reid_core.types import Batch, Modality


class PlanBatches(Dataset[dict[str, np.ndarray]]):
    """Item i is the i-th global batch of a plan, decoded and augmented."""

    def __init__(self, plan: Plan, inputs: Inputs, transforms: Transforms) -> None:
        source = PlanDatasource(plan, inputs, rank=0, world=1, batches_per_block=1)
        self._tasks = source.get_read_tasks(1)
        self._decode = DecodeAndAugment(
            height=inputs.height, width=inputs.width, transforms=transforms, decoded=inputs.decoded
        )

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        (block,) = self._tasks[number]()
        names = block.column_names
        return self._decode({n: block[n].to_numpy(zero_copy_only=False) for n in names})


def batches(start: EpochStart, job: Job, processes: int) -> Iterator[dict[Modality, Batch]]:
    """One epoch of batches through a DataLoader with `processes` loader processes."""
    loader = DataLoader(
        PlanBatches(start.plan, job.train, job.transforms),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=processes,
        prefetch_factor=4 if processes else None,
    )
    shape = start.plan.shape
    return training_batches(loader, shape=shape, rank=0, world=1, tokens=job.train.tokens)


def _as_is(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return columns


def train(
    config: RunConfig, prepared: Prepared, run_dir: Path, *, processes: int = 0
) -> tuple[Progress, list[dict[str, Any]]]:
    """Train in this process; returns the final progress and the log lines."""
    run_dir.mkdir(parents=True, exist_ok=True)
    job = Job.of(config, prepared, run_dir)
    loop = TrainingLoop(
        job,
        epoch_maker_of(job, prepared)(),
        lambda start: batches(start, job, processes),
        lambda line, state: None,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return loop.run(), list(runlog.read_metrics(run_dir))
