"""RegDB's ten divisions with one command: a model for each, and the mean that papers report.

OUT/trial-01 ... trial-10    run directories, as if trained with data.trial=1 ... 10
OUT/summary.json             means over the trials; their deviations and the single trials beside
OUT/report.html              the same as a page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import runlog
from pipelines.runs.records import ProtocolScores, Summary
from reid_core.datasets import LAYOUTS

TRIALS = LAYOUTS["regdb"].trials
_ONE, _ALL = "one of the 10 trials", "mean of the 10 trials"

TrainThese = Callable[[Mapping[Path, RunConfig]], Mapping[Path, Summary]]


def is_folder(directory: Path) -> bool:
    """Whether a directory holds the trials of one data set rather than a run."""
    return folder(directory, TRIALS[0]).is_dir()


def folder(out: Path, trial: int) -> Path:
    """The run directory of a trial."""
    return out / f"trial-{trial:02d}"


def runs(config: RunConfig, out: Path) -> dict[Path, RunConfig]:
    """The configuration of each trial, by its run directory.

    Args:
        config, out: see `train_all`.

    Raises:
        UserError: `out` holds something else.
    """
    if (out / runlog.CONFIG).exists():
        raise UserError(f"{out} holds a single run: choose another --out for data.trial=all")
    return {folder(out, n): _with_trial(config, n) for n in TRIALS}


def train_all(config: RunConfig, out: Path, train: TrainThese) -> Summary:
    """Train the trials; those that are finished are not trained again.

    Args:
        config: of all trials; its data.trial is "all".
        out: folder of the run directories; a used one is continued.
        train: trains, or goes on training, in run directories, and returns their summaries; one
            after the other, or several at a time (`pipelines.training.side_by_side`).

    Returns:
        The summary of all trials, as written to summary.json; see `summarize`.

    Raises:
        UserError: `out` holds something else, or a trial with another configuration; found before
            anything is trained.
    """
    single = runs(config, out)
    finished = {run_dir: _finished(run_dir, one) for run_dir, one in single.items()}
    left = {run_dir: one for run_dir, one in single.items() if finished[run_dir] is None}
    trained = train(left) if left else {}
    every = {n: folder(out, n) for n in TRIALS}
    summary = summarize({n: finished[path] or trained[path] for n, path in every.items()})
    runlog.write_summary(out, summary)
    return summary


def read(out: Path) -> Summary:
    """The summary of finished trials.

    Raises:
        UserError: not all of them are finished.
    """
    try:
        summary: Summary = json.loads((out / runlog.SUMMARY).read_text())
        return summary
    except OSError as error:
        missing = [n for n in TRIALS if not (folder(out, n) / runlog.SUMMARY).exists()]
        names = ", ".join(folder(out, n).name for n in missing)
        raise UserError(
            f"{out} has no summary, its trials {names} are not finished: train again with "
            "data.trial=all, which goes on"
        ) from error


def summarize(summaries: Mapping[int, Summary]) -> Summary:
    """Mean and standard deviation over trials.

    Args:
        summaries: per trial the content of its summary.json.

    Returns:
        The keys of a run's summary, with means in "rows" and "evaluation"; "std" as "rows", the
        deviation of one trial from the mean (divided by the number of trials); "trials" with every
        trial's own rows. Scores in percent.
    """
    every = list(summaries.values())
    rows = {row: [one["rows"][row] for one in every] for row in every[0]["rows"]}
    chances = [chance for one in every if (chance := one["chance"]["rank1"]) is not None]
    tables = {name: [one["evaluation"][name] for one in every] for name in every[0]["evaluation"]}
    return {
        "rows": {row: _over(np.mean, scores) for row, scores in rows.items()},
        "std": {row: _over(np.std, scores) for row, scores in rows.items()},
        "protocol": every[0]["protocol"].replace(_ONE, _ALL),
        "chance": {"rank1": round(float(np.mean(chances)), 4) if chances else None},
        "seconds": _over(np.sum, [one["seconds"] for one in every]),
        "seed": every[0]["seed"],
        "evaluation": {name: _entry(result) for name, result in tables.items()},
        "trials": {f"{number:02d}": one["rows"] for number, one in summaries.items()},
    }


def _entry(result: list[ProtocolScores]) -> ProtocolScores:
    """One protocol over trials; a trial is one of its galleries, its own deviation is dropped."""
    means = [one["mean"] for one in result]
    return {
        "mean": _over(np.mean, means),
        "std": _over(np.std, means),
        "num_valid_queries": int(np.mean([one["num_valid_queries"] for one in result])),
        "num_invalid_queries": int(np.mean([one["num_invalid_queries"] for one in result])),
    }


def _over(
    how: Callable[[list[float]], np.floating], result: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    keys = [key for key in result[0] if all(key in one for one in result)]
    return {key: round(float(how([one[key] for one in result])), 4) for key in keys}


def _with_trial(config: RunConfig, trial: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"trial": trial})})


def _finished(run_dir: Path, config: RunConfig) -> Summary | None:
    """A trial's summary if it is trained to the end, with this configuration."""
    runlog.refuse_another(run_dir, config)
    summary = run_dir / runlog.SUMMARY
    return json.loads(summary.read_text()) if summary.exists() else None
