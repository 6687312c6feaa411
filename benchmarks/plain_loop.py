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

from pipelines import runlog
from pipelines.config import RunConfig
from pipelines.data import ImageFiles, Plan, training_batches, transforms
from pipelines.loop import Job, TrainingLoop
from pipelines.memory_bank import MemoryBank
from pipelines.prepare import Prepared
from pipelines.state import Progress
from reid_core.methods.cclnet import MODALITIES
from reid_core.types import Batch, Modality


class PlanBatches(Dataset[dict[str, np.ndarray]]):
    """Item i is the i-th global batch of a plan, decoded and augmented."""

    def __init__(self, plan: Plan, files: ImageFiles, config: RunConfig) -> None:
        self._plan, self._files = plan, files
        self._transforms = transforms(config.augmentation)

    def __len__(self) -> int:
        return self._plan.num_batches

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        parts = []
        for m in MODALITIES:
            table = self._plan.rank_slice(m, slice(number, number + 1), 0, 1)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            decoded = self._files.read(m, columns["row"])
            columns["image"] = self._transforms[m](decoded, columns["seed"])
            parts.append(columns)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batches(
    bank: MemoryBank, files: ImageFiles, config: RunConfig, processes: int
) -> Iterator[dict[Modality, Batch]]:
    """One epoch of batches through a DataLoader with `processes` loader processes."""
    plan = bank.current_plan()
    loader = DataLoader(
        PlanBatches(plan, files, config),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=processes,
        prefetch_factor=4 if processes else None,
    )
    sizes = {m: plan.rows[m].shape[1] for m in plan.rows}
    return training_batches(loader, sizes=sizes, rank=0, world=1)


def _as_is(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return columns


def train(
    config: RunConfig, prepared: Prepared, run_dir: Path, *, processes: int = 0
) -> tuple[Progress, list[dict[str, Any]]]:
    """Train in this process; returns the final progress and the log lines."""
    run_dir.mkdir(parents=True, exist_ok=True)
    bank = MemoryBank(config, prepared.pids)
    job = Job(config, run_dir, prepared.train_files, prepared.test_files, prepared.test)
    loop = TrainingLoop(
        job,
        bank,
        lambda: batches(bank, job.train, config, processes),
        lambda line, state: None,
        device=torch.device("cpu"),
    )
    return loop.run(), list(runlog.read_metrics(run_dir))
