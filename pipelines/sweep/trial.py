"""One trial of a sweep: a run per seed, watched by a trainable of Ray Tune.

Tune places the trainable in a placement group that captures whatever it starts, and the tasks of a
training run would not fit in there; so the run is a task with its own scheduling, and lives outside
of Tune as `crossreid train` does. When Tune ends the trainable, the task loses its owner and ends
with everything that it started. A trainable that is lost with its machine is begun again by Tune, a
task that is lost by the trainable: that is why a trial whose run fails reports so and ends, rather
than raise what Tune would try again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune

from pipelines.runs import runlog, warned
from pipelines.storage.files import Json, replace_file
from pipelines.sweep import search_space
from pipelines.sweep.ledger import FOLDER, mean_scores, scores_of
from pipelines.sweep.search_space import Study, Values
from pipelines.training.side_by_side import Run, said

ERROR = "error.txt"
_POLL_S = 1.0


@dataclass(frozen=True)
class Runs:
    """What the trials of a sweep have in common.

    Attributes:
        study: the sweep.
        root: its folder.
        command: the command line, for the record of each run.
        seeds_at_once: of a trial.
        known: warnings that have been shown already.
    """

    study: Study
    root: Path
    command: tuple[str, ...]
    seeds_at_once: int = 1
    known: tuple[str, ...] = ()


def train_trial(point: Mapping[str, Values], *, runs: Runs) -> None:
    """One trial: a run per seed, measured epochs reported as they come."""
    folder = runs.root / FOLDER / tune.get_context().get_trial_name()
    (folder / ERROR).unlink(missing_ok=True)
    with warned.kept(folder):
        _train_seeds(point["values"], folder, runs)


def _train_seeds(values: Values, folder: Path, runs: Runs) -> None:
    objective = runs.study.search.objective
    done: dict[str, dict[str, float]] = {}
    epochs = 0
    seeds, under_way = runs.study.search.seeds, dict[int, Run]()
    for number, seed in enumerate(seeds):
        for ahead in seeds[number : number + runs.seeds_at_once]:
            if ahead not in under_way:
                config = search_space.trial_config(runs.study, values, ahead)
                # the command holds the sweep: who is still in the folder is ending
                under_way[ahead] = Run(config, folder / f"seed-{ahead}", runs.command, held=True)
        run, run_dir = under_way[seed], folder / f"seed-{seed}"
        last = epochs
        try:
            for count, scores in _measured(run, run_dir, objective):
                last = epochs + count
                tune.report(_result(objective, done, scores, epochs=last))
        except ray.exceptions.RayError as error:
            replace_file(folder / ERROR, said(error))
            tune.report({"score": float("-inf"), "epochs": last, "finished": False, "failed": True})
            return
        *_, end = runlog.read_metrics(run_dir)
        done[str(seed)] = scores_of(end)
        epochs = last
    tune.report(_result(objective, done, {}, epochs=epochs + 1) | {"finished": True})


def _result(
    objective: str,
    done: Mapping[str, dict[str, float]],
    current: dict[str, float],
    *,
    epochs: int,
) -> dict[str, Json]:
    """What Tune is told: the mean over the seeds that are done, or the current scores."""
    scores = mean_scores(done) if done else current
    return {
        "score": scores[objective],
        "scores": scores,
        "runs": dict(done),
        "epochs": epochs,
        "finished": False,
    }


def _measured(run: Run, run_dir: Path, objective: str) -> Iterator[tuple[int, dict[str, float]]]:
    """(epochs so far, scores) of every epoch that can be judged, until the run is over.

    Raises:
        RayError: see `Run.summary`.
    """
    seen = 0
    while True:
        over, _ = ray.wait([run.task], timeout=_POLL_S)
        lines = list(runlog.read_metrics(run_dir))
        for number, line in enumerate(lines[seen:], start=seen + 1):
            scores = scores_of(line)
            if objective in scores:
                yield number, scores
        seen = max(seen, len(lines))  # one that is begun again takes some of them back
        if over and run.summary() is not None:
            return
