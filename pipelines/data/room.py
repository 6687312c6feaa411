"""Whether the checkpoints of a run fit onto the disk; what it has written already counts as room."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import checkpoint


def check_disk(config: RunConfig, run_dir: Path, model_bytes: int, *, runs: int = 1) -> None:
    """Refuse to start where the checkpoints will not fit; a run that has fitted goes on.

    A checkpoint holds weights and two moments; one more than is kept exists while it is written,
    and so it is with the one within an epoch. A run without an epoch left writes none.

    Args:
        config: of the run.
        run_dir: where it writes; or the folder of several runs. Need not exist.
        model_bytes: size of the model.
        runs: how many are to fit there.

    Raises:
        UserError: how much is free, how much is needed, and what to do.
    """
    if checkpoint.is_done(config, run_dir):
        return
    needed = runs * (3 * model_bytes * (config.trainer.keep_checkpoints + 3) + 64 * 2**20)
    folder = existing(run_dir)
    free, own = shutil.disk_usage(folder).free, checkpoint.bytes_of(run_dir)
    if free + own < needed:
        there = f", beside the {own / 2**30:.1f} GiB of its own" if own else ""
        several = f"{runs} runs" if runs > 1 else "this run"
        raise UserError(
            f"{folder} has {free / 2**30:.1f} GiB free{there}; the checkpoints of {several} need "
            f"about {needed / 2**30:.1f} GiB: free space, choose another --out, or lower "
            "trainer.keep_checkpoints"
        )


def existing(folder: Path) -> Path:
    """The folder, or the innermost one around it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
