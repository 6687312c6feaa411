"""Training on Ray: the memory actor, the worker group and its data streams, assembled.

The driver reads and checks the data, starts the memory bank as an actor, and runs `TrainingLoop`
in every worker of one TorchTrainer. Every worker streams its share of an epoch's plan through Ray
Data, decoded on its own node. Ray Train restores the last checkpoint after a failure and when the
same run directory is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.cluster.capacity import share_of
from pipelines.cluster.session import session_of_run, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data.gate import Passed
from pipelines.data.prepare import Prepared
from pipelines.data.unreadable import find_on_all_nodes
from pipelines.runs import recovery
from pipelines.runs.records import Summary
from pipelines.training import calibrating, group
from pipelines.training.actor import bank_on_ray
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from pipelines.training.run import Backend, complete


def train(
    config: RunConfig, run_dir: Path, command: Sequence[str], *, passed: Passed | None = None
) -> Summary:
    """Train, or go on training, in a run directory; see `pipelines.training.run.complete`."""
    on_ray = Backend(session_of_run, find_on_all_nodes, _fit, _calibrated)
    return complete(config, run_dir, command, on_ray, passed=passed)


def _fit(
    config: RunConfig, prepared: Prepared, run_dir: Path, asked: Callable[[], bool]
) -> Progress:
    start_from = recovery.folder_for_ray(config, run_dir)
    job = Job.of(config, prepared, run_dir)
    with bank_on_ray(job, prepared, use_gpu=uses_gpu(config)) as bank:
        reported = group.fit(job, bank, start_from, _share(config), asked)
    # where nothing was reported, all was done already, or nothing yet
    newest = reported or start_from
    return Progress.of_checkpoint(newest) if newest else Progress()


def _calibrated(config: RunConfig, run_dir: Path) -> str:
    return calibrating.on_the_cluster(config, run_dir, _share(config))


def _share(config: RunConfig) -> dict[str, float]:
    """What one worker reserves."""
    return share_of(config, uses_gpu(config))
