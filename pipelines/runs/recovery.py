"""How a run resumes, and what an interrupted run left behind, put in order before it goes on.

The same command again goes on. In this order it is decided from what:

1. `runlog.claim`: the directory belongs to a configuration; what decides results must agree with it
   (`RunConfig.identity`), what does not, such as the number of workers, may change.
2. `data.sample_list.recall`: the rows are those that the run began with, in their order; an image
   that broke since then is replaced, never left out.
3. `tidy`, below: only whole checkpoints stay. Ray Train's own list names the newest one; where the
   list is broken the newest whole folder takes its place; without one, `start_from`, a finished
   stage of another run; without that, the beginning.
4. `TrainingLoop`: stages before the checkpoint's are skipped, their hand-ons are in it; the stage
   itself gets module and optimizer back and starts after the finished epoch. Log lines of later
   epochs are taken back. Nothing random has a state: every epoch draws from its own seed.
5. `within_epoch.load`: where the state was kept in the middle of the epoch that comes next, it goes
   on there, with the plan that the epoch began with.
6. Within a run, a worker that fails ends the group and Ray Train starts it again from the newest
   checkpoint. A memory bank that was restarted is empty: its token tells the workers, who do the
   same.

Ray Train keeps a list of a run's checkpoints and rewrites it in place after every epoch. A driver
that is killed within that write, or a disk that is full then, leaves a broken list beside good
checkpoints; a copy that was cut off leaves a folder that no list names.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.runs import checkpoint
from pipelines.runs.records import State
from pipelines.storage.abandoned import remove_partial

log = logging.getLogger(__name__)
RECORD = "checkpoint_manager_snapshot.json"
# Ray Train's names, and those of one process; a copy under a user's own name is left alone
_OWN_NAME = re.compile(r"checkpoint_(\d+|\d{4}-\d\d-\d\d_.+|.+_\d{4})")


def tidy(run_dir: Path) -> Path | None:
    """Remove what no run can use; call it while nothing trains in the directory.

    That is, checkpoints and files that an interruption left unfinished.

    Returns:
        The newest whole checkpoint where Ray's own list is missing or broken, so that it cannot
        find one; None where it can, or where there is none.
    """
    for file in remove_partial(run_dir, "*/", "stages/*/"):
        log.warning("removed %s, which an interruption left unfinished", file)
    listed = _listed(run_dir)
    result = [
        folder
        for folder in run_dir.glob("checkpoint_*")
        if folder.is_dir() and _OWN_NAME.fullmatch(folder.name)
    ]
    whole = [folder for folder in result if checkpoint.is_whole(folder)]
    if listed and set(listed) <= {folder.name for folder in whole}:
        whole = [folder for folder in whole if folder.name in listed]
    elif (run_dir / RECORD).exists():
        log.warning("Ray's list of checkpoints in %s is broken; it is made anew", run_dir)
        (run_dir / RECORD).unlink()
    for folder in set(result) - set(whole):
        log.warning("removed %s, which an interruption left unfinished", folder)
        shutil.rmtree(folder)
    if (run_dir / RECORD).exists() or not whole:
        return None
    return checkpoint.find(run_dir)


def folder_for_ray(config: RunConfig, run_dir: Path) -> Path | None:
    """The checkpoint that Ray is to be told, where its own list names none; None for the rest.

    That of `start_from` has passed the gate (`checkpoint.finished_stage`).
    """
    own = tidy(run_dir)
    if own or (run_dir / RECORD).exists() or config.start_from is None:
        return own
    return checkpoint.find(config.start_from)


def start_from(config: RunConfig, run_dir: Path) -> State | None:
    """The state that a run in one process goes on from; None for the beginning.

    That of `start_from` has passed the gate (`checkpoint.finished_stage`).
    """
    tidy(run_dir)
    (run_dir / RECORD).unlink(missing_ok=True)  # Ray's list would not hold those of one process
    begun = any(run_dir.glob("checkpoint_*"))
    path = run_dir if begun else config.start_from
    if path is None:
        return None
    return checkpoint.load_to_go_on_from(checkpoint.find(path) / checkpoint.STATE)


def keep(run_dir: Path, state: State, *, newest: int) -> None:
    """Keep the state of a run in one process; the oldest go when the new one is whole.

    Args:
        run_dir: run directory.
        state: after an epoch.
        newest: number of checkpoints that stay.
    """
    progress = state["progress"]
    checkpoint.save(run_dir / f"checkpoint_{progress['stage']}_{progress['epoch']:04d}", state)
    whole = checkpoint.whole_ones(run_dir)
    for folder in [one for one in whole if _OWN_NAME.fullmatch(one.name)][:-newest]:
        shutil.rmtree(folder)


def _listed(run_dir: Path) -> list[str]:
    """Names of the checkpoint folders on Ray's list; none where it cannot be read."""
    try:
        record = json.loads((run_dir / RECORD).read_text())
        return [entry["checkpoint_dir_name"] for entry in record["checkpoint_results"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
