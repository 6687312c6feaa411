"""A run from its configuration to summary.json, on Ray or in this process.

What is wrong is found as early as it can be, and what is written down first is what a run that is
interrupted goes on from: the order of the steps is what `runs.recovery` relies on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.data import gate, room
from pipelines.data.prepare import FindBroken, Prepared, prepare
from pipelines.data.sample_list import Row, recall, remember, rows_of_checkpoint
from pipelines.errors import Terminated
from pipelines.runs import ending, runlog, warned
from pipelines.runs.epoch_lines import follow
from pipelines.runs.records import Summary
from pipelines.storage import lock
from pipelines.training.progress import Progress, is_over
from pipelines.training.summary import finish

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What a run happens on.

    Attributes:
        machines: holds what trains while the run lasts, and refuses what it could never do.
        find_broken: looks at every image, with all machines.
        fit: trains on the checked data set, from the newest checkpoint on, until all is done or
            the last argument answers that the run is to end.
        calibrate: says what the finished run's similarities mean, on what one worker had; returns
            what is in the way, "" for nothing.
    """

    machines: Callable[[RunConfig, Path], AbstractContextManager[None]]
    find_broken: FindBroken
    fit: Callable[[RunConfig, Prepared, Path, Callable[[], bool]], Progress]
    calibrate: Callable[[RunConfig, Path], str]


def complete(
    config: RunConfig,
    run_dir: Path,
    command: Sequence[str],
    backend: Backend,
    *,
    passed: gate.Passed | None = None,
) -> Summary:
    """Train, or go on training, in a run directory.

    Args:
        config: the run's configuration.
        run_dir: where everything goes; a directory of the same configuration is continued.
        command: the command line, for the record.
        backend: what trains.
        passed: what the gate answered of this run; None asks it here.

    Returns:
        The summary, as written to summary.json.

    Raises:
        UserError: something the user can put right, found before or during training.
        RunFailedError: workers failed for another reason.
        Terminated: a signal asked for an end; the same call goes on from there.
    """
    began = time.perf_counter()
    run_dir = run_dir.resolve()
    with warned.kept() as warnings:
        # 1. What is wrong with settings, data or weights costs no start of Ray and no directory.
        if passed is None:
            passed = gate.check(config, run_dir)
        else:  # with other runs, which may have filled the disk since
            room.check_disk(config, [run_dir], passed.encoder_bytes)
        # 2. One process at a time; then the directory is this configuration's, from now on.
        with lock.held(run_dir):
            runlog.claim(run_dir, config, command)
            warnings.write_to(run_dir, passed.warnings)
            # 3. The machines; before they read an image, what they could never do is refused.
            with backend.machines(config, run_dir):
                # 4. The rows: those that the run, or the stage that it starts from, began with, or
                #    else all that can be read, written down before training numbers them.
                begun = recall(run_dir)
                rows = _rows_before(config) if begun is None else begun
                prepared = prepare(config, passed, backend.find_broken, begun=rows)
                if begun is None:
                    remember(run_dir, prepared.train)
                # 5. Training, from the newest whole checkpoint on (`runs.recovery`).
                started = time.perf_counter()
                with follow(run_dir, config), ending.gently() as signals:
                    asked = partial(_asked, signals)
                    progress = backend.fit(config, prepared, run_dir, asked)
                if signals.asked is not None and not is_over(config, progress):
                    raise Terminated(signals.asked)
                # 6. What the finished run says of itself, and what its similarities mean.
                seconds = {"start": started - began, "train": time.perf_counter() - started}
                summary = finish(run_dir, config, prepared, progress, seconds)
                if config.evaluation.calibrate:
                    calibrate(config, run_dir, backend)
    return summary


def calibrate(config: RunConfig, run_dir: Path, backend: Backend) -> None:
    """Say what the similarities of a finished run mean; what is in the way is a warning."""
    if said := backend.calibrate(config, run_dir):
        log.warning(
            "similarities have no probability yet: %s; `crossreid calibrate %s` gives them one",
            said,
            run_dir,
        )


def _rows_before(config: RunConfig) -> list[Row] | None:
    """The rows that a stage which the run starts from was trained on; None where nothing tells."""
    return None if config.start_from is None else rows_of_checkpoint(config.start_from) or None


def _asked(signals: ending.Signals) -> bool:
    return signals.asked is not None
