"""Whether the checkpoints of runs fit onto the disk; what they have written counts as room."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from reid_core.methods import METHODS


def check_disk(config: RunConfig, run_dirs: Sequence[Path], encoder_bytes: int) -> None:
    """Refuse to start where the checkpoints will not fit; a run that has fitted goes on.

    A checkpoint holds weights, their slow average where there is one, and two moments. The last of
    each stage stays. One more than is kept exists while it is written, and so it is with the one
    within an epoch. A run without an epoch left writes none.

    Args:
        config: of the runs, which differ in their data.
        run_dirs: where they write, all on one disk, one run at a time at least; need not exist.
        encoder_bytes: size of what is trained.

    Raises:
        UserError: how much is free, how much is needed, and what to do.
    """
    left = [run_dir for run_dir in run_dirs if not checkpoint.is_done(config, run_dir)]
    if not left:
        return
    method = METHODS[config.method]
    whole = (3 + method.averages(config.settings)) * encoder_bytes
    stages = method.stages(config.settings)
    of_stages = sum(not (d / checkpoint.STAGES / name).exists() for d in left for name in stages)
    num = len(left) * config.trainer.keep_checkpoints + of_stages + 3
    needed = num * whole + 64 * 2**20
    folder = existing(left[0])
    free, own = shutil.disk_usage(folder).free, sum(map(checkpoint.bytes_of, left))
    if free + own < needed:
        there = f", beside the {own / 2**30:.1f} GiB of its own" if own else ""
        runs = f"{len(left)} runs" if len(left) > 1 else "this run"
        raise UserError(
            f"{folder} has {free / 2**30:.1f} GiB free{there}; the checkpoints of {runs} need "
            f"about {needed / 2**30:.1f} GiB: free space, choose another --out, or lower "
            "trainer.keep_checkpoints"
        )


def existing(folder: Path) -> Path:
    """The folder, or the innermost one around it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
