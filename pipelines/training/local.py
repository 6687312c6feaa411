"""A whole run in this process, without Ray: for a machine with one GPU, a notebook, a debugger.

The loop, the plans, the checkpoints, the log and the summary are those of a run on Ray, and a run
directory that either of them began is continued by the other. Threads decode what comes next, and
cluster one modality while the other one is being embedded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from pipelines.cluster.machine import cores
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.data.prepare import Prepared
from pipelines.data.unreadable import find_in_threads
from pipelines.errors import UserError
from pipelines.evaluation.calibrate import calibrate_finished
from pipelines.runs import failures
from pipelines.runs.records import Summary
from pipelines.training.in_process import fit
from pipelines.training.progress import Progress
from pipelines.training.run import Backend, complete
from reid_core.methods.sections import unread

log = logging.getLogger(__name__)
_MOST_READERS = 16


def train(
    config: RunConfig,
    run_dir: Path,
    command: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    readers: int | None = None,
    passed: gate.Passed | None = None,
) -> Summary:
    """Train, or go on training, in a run directory; `trainer.num_workers` is not read.

    Args:
        config, run_dir, command, passed: see `pipelines.training.run.complete`.
        device: None for a GPU if there is one and `trainer.use_gpu` does not forbid it.
        readers: threads that decode; None for as many as the machine can spare.

    Returns:
        The summary, as written to summary.json.

    Raises:
        UserError: something the user can put right, found before or during training.
        Terminated: a signal asked for an end; the same call goes on from there.
    """
    device = device or _device(config)
    readers = readers or _readers(device)
    here = Backend(
        machines=_this_process,
        find_broken=partial(find_in_threads, num_threads=readers),
        fit=partial(_fit, device=device, readers=readers),
        calibrate=lambda config, run_dir: calibrate_finished(run_dir, device),
    )
    return complete(config, run_dir, command, here, passed=passed)


def train_all(runs: Mapping[Path, RunConfig], command: Sequence[str]) -> Mapping[Path, Summary]:
    """Train runs that differ in their data, one after the other, and write their reports.

    Args:
        runs: configuration of each run directory.
        command: see `train`.

    Returns:
        The summary of each.

    Raises:
        UserError: found by the gate for any of them before the first one trains, or see `train`.
    """
    from pipelines.report import page

    passed = gate.check_all(runs)
    summaries = {}
    for run_dir, config in runs.items():
        summaries[run_dir] = train(config, run_dir, command, passed=passed[run_dir])
        page.write(run_dir)
    return summaries


@contextmanager
def _this_process(config: RunConfig, run_dir: Path) -> Iterator[None]:
    """Holds no machines; warns of settings that are for them."""
    alone = "a run in one process"
    for idle in (
        *unread(config.trainer, "trainer", ("min_workers",), alone),
        *unread(config.ray, "ray", type(config.ray).model_fields, alone),
    ):
        log.warning("%s", idle)
    yield


def _fit(
    config: RunConfig,
    prepared: Prepared,
    run_dir: Path,
    asked: Callable[[], bool],
    *,
    device: torch.device,
    readers: int,
) -> Progress:
    attempt = failures.next_attempt(run_dir)
    with failures.reported(run_dir, rank=0, attempt=attempt):
        return fit(config, prepared, run_dir, device=device, readers=readers, asked=asked)


def _device(config: RunConfig) -> torch.device:
    use_gpu = config.trainer.use_gpu
    available = torch.cuda.is_available()
    if use_gpu and not available:
        raise UserError("trainer.use_gpu=true, but torch sees no GPU here")
    return torch.device("cuda" if available and use_gpu is not False else "cpu")


def _readers(device: torch.device) -> int:
    """On the CPU the model takes the cores, and one thread keeps up with it."""
    spare = cores() - 1
    return max(1, min(spare, _MOST_READERS)) if device.type == "cuda" else 1
