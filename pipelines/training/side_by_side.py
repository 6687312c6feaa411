"""Several runs at a time on one cluster: trials of a data set, seeds, trials of a sweep.

A published batch fills one GPU, so what more GPUs are for first is more runs. Each is a Ray task
that reserves nothing and drives its own bank and workers, as `crossreid train` does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from pipelines.cluster.session import session, uses_gpu
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs.console import console
from pipelines.runs.records import Summary

log = logging.getLogger(__name__)


def slots(
    available: Mapping[str, float], config: RunConfig, *, use_gpu: bool, requested: int
) -> int:
    """Runs that can train side by side without waiting for each other's resources.

    Worker groups are placed whole or not at all and cannot block each other. Images are decoded by
    tasks that reserve nothing, so a CPU run counts one core beyond its workers for them.

    Args:
        available: resources of the cluster.
        config: of a run.
        use_gpu: whether its workers take GPUs.
        requested: upper limit.

    Raises:
        UserError: not even one run fits.
    """
    kind, needed = _needs(config, use_gpu)
    fitting = int(available.get(kind, 0) // needed)
    if fitting == 0 and use_gpu and config.ray.address not in (None, "local"):
        return requested  # Nodes may still be started; waiting worker groups ask for them.
    if fitting == 0:
        raise UserError(
            f"a trial needs {needed} {kind}s, the cluster has {available.get(kind, 0):g}: lower "
            "trainer.num_workers or trainer.cpus_per_worker, or add nodes"
        )
    if fitting < requested:
        log.warning(
            "%d trials at a time instead of %d: each needs %d %ss, the cluster has %g",
            fitting,
            requested,
            needed,
            kind,
            available[kind],
        )
    return min(fitting, requested)


def room(available: Mapping[str, float], config: RunConfig, *, use_gpu: bool) -> int:
    """As `slots`, without a limit and without a word."""
    kind, needed = _needs(config, use_gpu)
    return int(available.get(kind, 0) // needed)


def _needs(config: RunConfig, use_gpu: bool) -> tuple[str, int]:
    settings = config.trainer
    if use_gpu:
        return "GPU", settings.num_workers
    return "CPU", settings.num_workers * settings.cpus_per_worker + 1


def start(config: RunConfig, run_dir: Path, command: Sequence[str]) -> ray.ObjectRef[Summary]:
    """Begin, or go on with, a run as a task; the reference of its summary."""
    return _train.options(scheduling_strategy="DEFAULT").remote(config, run_dir, tuple(command))


def train_on_one_cluster(
    runs: Mapping[Path, RunConfig], command: Sequence[str]
) -> Mapping[Path, Summary]:
    """Train runs that differ in their data, as many at a time as there is room for.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.

    Returns:
        The summary of each.

    Raises:
        UserError: found by the gate before Ray starts, or see `train_all`.
    """
    run_dir, config = next(iter(runs.items()))
    gate.check(config, run_dir)  # what is wrong with all of them costs no start of Ray
    with session(config):
        at_once = slots(
            ray.cluster_resources(), config, use_gpu=uses_gpu(config), requested=len(runs)
        )
        if at_once > 1:
            return train_all(runs, command, at_once=at_once)
        return {path: _train_run(one, path, tuple(command)) for path, one in runs.items()}


def train_all(
    runs: Mapping[Path, RunConfig], command: Sequence[str], *, at_once: int
) -> dict[Path, Summary]:
    """Train runs on the connected cluster, some of them at a time.

    Args:
        runs: configuration of each run directory.
        command: the command line, for the record.
        at_once: how many.

    Returns:
        The summary of each.

    Raises:
        UserError: one failed, with its folder. Those under way are trained to their end before,
            and no other begins.
    """
    left, errors = list(runs), list[str]()
    summaries: dict[Path, Summary] = {}
    under_way: dict[ray.ObjectRef[Summary], Path] = {}
    while under_way or (left and not errors):
        while left and not errors and len(under_way) < at_once:
            run_dir = left.pop(0)
            console.print(f"{run_dir.name} begins")
            under_way[start(runs[run_dir], run_dir, command)] = run_dir
        (over,), _ = ray.wait(list(under_way))
        run_dir = under_way.pop(over)
        try:
            summaries[run_dir] = ray.get(over)
            console.print(f"{run_dir.name} is trained")
        except ray.exceptions.RayError as error:
            reason = getattr(error, "cause", None) or error
            console.print(f"{run_dir.name} failed")
            errors.append(f"{run_dir.name}: {reason}")
    if errors:
        raise UserError("\n".join(errors))
    return summaries


def _train_run(config: RunConfig, run_dir: Path, command: tuple[str, ...]) -> Summary:
    from pipelines.report import page
    from pipelines.training.driver import train

    summary = train(config, run_dir, command)
    page.write(run_dir)
    return summary


_train = ray.remote(num_cpus=0, max_retries=0)(_train_run)
