"""`crossreid tune`: the trials of a sweep as training runs on one cluster, driven by Ray Tune.

A trial is watched by a Tune trainable that takes no CPU, see `pipelines.sweep.trial`. One that is
lost with its machine is begun again by Tune.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher, sample

from pipelines.cluster.session import session, uses_gpu
from pipelines.errors import Terminated, UserError, said_at_the_end
from pipelines.runs import ending, warned
from pipelines.runs.console import console
from pipelines.storage import lock
from pipelines.storage.files import Json
from pipelines.sweep import entry, page, search_space
from pipelines.sweep.ledger import Ledger, SweepTrial, write_best
from pipelines.sweep.ledger import read as read_trials
from pipelines.sweep.search_space import Domain, Study, Values
from pipelines.sweep.trial import ERROR, Runs, train_trial
from pipelines.training.room_for_runs import free_runs, slots
from pipelines.training.side_by_side import BEGUN_AGAIN

log = logging.getLogger(__name__)
_LOOK_S = 5.0  # between two looks at what trials warn of
_WATCHER_MEMORY = 512 * 2**20  # bytes; a process that has imported torch
_NO_LAST_EPOCH = 10**9
_AT_THE_END = "the trials are stopped, and go on later from what they have kept"
_ENDED = (
    "ended by a signal: trials that are over are kept; the same command with --resume goes on with "
    "the others from their last epochs"
)


def search_for_best(
    study: Study, root: Path, command: Sequence[str], *, resume: bool
) -> tuple[list[SweepTrial], SweepTrial]:
    """Run what is left of a sweep.

    Args:
        study: from `sweep.search_space.load`.
        root: folder of the sweep, visible on all nodes.
        command: the command line, for the record.
        resume: go on with the sweep in `root`: what finished is kept, what was interrupted
            continues from its last checkpoint, what failed is tried again.

    Returns:
        The trials that are over, and the best.

    Raises:
        UserError: something the user can put right; no trial finished.
        Terminated: a signal asked for an end; with `resume` the same call goes on from there.
    """
    with lock.held(root, "tunes"), said_at_the_end(_ENDED):
        ledger = Ledger(root, study, resume=resume)
        _finish(study, ledger, command)
        best = write_best(ledger.root, study)
        page.write(ledger.root)
        return read_trials(ledger.root), best


def _finish(study: Study, ledger: Ledger, command: Sequence[str]) -> None:
    """Run the trials that are left."""
    if _left(study, ledger):
        with warned.kept() as warnings:
            entry.check(study, ledger)
        config = search_space.trial_config(study, {}, study.search.seeds[0])
        with session(config):
            wanted = study.search.budget.concurrent
            use_gpu = uses_gpu(config)
            count = slots(config, use_gpu=use_gpu, requested=wanted)
            # what the trials leave free is for their seeds
            seeds = max(1, free_runs(config, use_gpu=use_gpu) // count)
            known = tuple(record.getMessage() for record in warnings.early)
            runs = Runs(study, ledger.root, tuple(command), seeds, known)
            _run(runs, ledger, count)


def _left(study: Study, ledger: Ledger) -> int:
    """Number of trials that are not over."""
    points = search_space.points(study)
    if points is None:
        return max(0, (study.search.budget.trials or 0) - len(ledger.over))
    return len(ledger.left(points))


def _run(runs: Runs, ledger: Ledger, concurrent: int) -> None:
    with ending.gently(what=_AT_THE_END) as signals:
        # In the main thread Tune would take Ctrl-C for itself and end as if all were done, and an
        # error that a signal raises within Ray's C code is lost.
        ending.beside(_tuner(runs, ledger, concurrent, signals).fit, lambda: None)
    if signals.asked is not None and _left(runs.study, ledger):
        raise Terminated(signals.asked)


def _tuner(runs: Runs, ledger: Ledger, concurrent: int, signals: ending.Signals) -> tune.Tuner:
    study, search = runs.study, runs.study.search
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    minutes = search.budget.minutes
    points = search_space.points(study)
    asha = search.asha
    return tune.Tuner(
        tune.with_resources(partial(train_trial, runs=runs), {"memory": _WATCHER_MEMORY}),
        param_space={} if points is None else {"values": tune.grid_search(ledger.left(points))},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=_left(study, ledger) if points is None else 1,
            search_alg=_optuna(study, ledger) if points is None else None,
            scheduler=None
            if asha is None
            else ASHAScheduler(
                time_attr="epochs",
                grace_period=asha.grace_epochs,
                reduction_factor=asha.reduction,
                max_t=_NO_LAST_EPOCH,
            ),
            max_concurrent_trials=concurrent,
            time_budget_s=60 * minutes if minutes else None,
            trial_name_creator=lambda trial: ledger.begin(trial.config["values"]),
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(ledger.root / "ray"),
            verbose=0,
            callbacks=[_Record(ledger, runs, signals)],
            stop=_WhenAsked(signals),
            failure_config=tune.FailureConfig(max_failures=BEGUN_AGAIN),
        ),
    )


def _optuna(study: Study, ledger: Ledger) -> Searcher:
    """Optuna's search, told what the sweep found before; interrupted trials come first."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise UserError(
            'method=optuna needs optuna: pip install -e ".[sweep]", or use method=random'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = study.search
    space = {"values": {key: _tune_domain(domain) for key, domain in search.space.items()}}
    searcher = OptunaSearch(
        OptunaSearch.convert_search_space(space),
        metric="score",
        mode="max",
        points_to_evaluate=[_flat(values) for values in ledger.pending().values()],
        seed=search.seed + len(ledger.over),
    )
    for trial in ledger.over:
        if trial.status == "finished":
            searcher.add_evaluated_point(_flat(trial.config), trial.scores[search.objective])
    return searcher


def _flat(values: Values) -> Values:
    return {f"values/{key}": value for key, value in values.items()}


def _tune_domain(domain: Domain) -> sample.Domain:
    drawn: sample.Domain
    if domain.values:
        drawn = tune.choice(list(domain.values))
    elif domain.uniform:
        drawn = tune.uniform(*domain.uniform)
    elif domain.loguniform:
        drawn = tune.loguniform(*domain.loguniform)
    else:
        assert domain.integers
        low, high = domain.integers
        drawn = tune.randint(low, high + 1)
    return drawn


class _WhenAsked(tune.Stopper):
    """Ends all trials when a signal asks for an end."""

    def __init__(self, signals: ending.Signals) -> None:
        self.signals = signals

    def __call__(self, trial_id: str, result: dict[str, Json]) -> bool:
        """No trial ends for what it reports."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune in every round of its loop."""
        return self.signals.asked is not None


class _Record(tune.Callback):
    """Writes a line of the ledger when a trial is over, and says what trials warn of."""

    def __init__(self, ledger: Ledger, runs: Runs, signals: ending.Signals) -> None:
        self.signals, self.news = signals, warned.News(runs.known)
        self.ledger, self.objective = ledger, runs.study.search.objective
        minutes = runs.study.search.budget.minutes
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.looked = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **_: object) -> None:
        """Trials have no terminal of their own."""
        if time.monotonic() - self.looked > _LOOK_S:
            self.looked = time.monotonic()
            for trial in trials:
                if trial.status == Trial.RUNNING:
                    self._show_warnings(trial)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: object
    ) -> None:
        """What an earlier command warned of is not shown again."""
        for folder in self._folders(trial):
            self.news.skip(folder)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: object
    ) -> None:
        """Its process or its machine was lost."""
        log.warning(
            "%s was lost with its process or its machine: it is begun again, as it is up to %d "
            "times, and its runs go on from their last checkpoints",
            trial,
            BEGUN_AGAIN,
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: object
    ) -> None:
        """Finished, failed, ended by successive halving, or with the sweep, which is not over."""
        if (trial.last_result or {}).get("failed"):
            self._end(trial, "failed")
            return
        finished = bool((trial.last_result or {}).get("finished"))
        interrupted = self.signals.asked is not None or time.monotonic() >= self.deadline
        if not finished and interrupted:
            console.print(f"{trial} interrupted: --resume goes on with it")
            return
        self._end(trial, "finished" if finished else "stopped")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: object
    ) -> None:
        """Its process died, once too often."""
        self._end(trial, "failed")

    def _end(self, trial: Trial, status: Literal["finished", "stopped", "failed"]) -> None:
        self._show_warnings(trial)
        result, error = trial.last_result or {}, ""
        if status == "failed":
            path = self.ledger.folder(str(trial)) / ERROR
            error = path.read_text() if path.exists() else "the process of the trial died"
        entry = SweepTrial(
            name=str(trial),
            config=trial.config["values"],
            status=status,
            scores={} if status == "failed" else result.get("scores", {}),
            seconds=round(result.get("time_total_s", 0.0), 1),
            runs={} if status == "failed" else result.get("runs", {}),
            error=error,
        )
        self.ledger.end(entry)
        score = entry.scores.get(self.objective)
        shown = f"{self.objective} {score:.2f}" if score is not None else error
        console.print(f"{entry.name} {status}  {shown}  {entry.config}", markup=False)

    def _show_warnings(self, trial: Trial) -> None:
        for folder in self._folders(trial):
            for warning in self.news.of(folder):
                console.print(f"{trial}: {warning}", markup=False)

    def _folders(self, trial: Trial) -> list[Path]:
        """Where a trial's watcher and its runs write down what they warn of."""
        folder = self.ledger.folder(str(trial))
        return [folder, *sorted(folder.glob("seed-*"))]
