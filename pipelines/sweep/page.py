"""The page of a sweep: the best trials, and how much each setting matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
import yaml

from pipelines.report import figures, words
from pipelines.report.figures import Scatter
from pipelines.report.panels import Panel
from pipelines.report.templates import render
from pipelines.storage.files import Json, replace_file
from pipelines.sweep import ledger
from pipelines.sweep.ledger import SweepTrial
from pipelines.sweep.search_space import STABILITY

FILE_NAME = "report.html"
_SCORES = {**words.SCORES, STABILITY: "Stability"}
_MAX_GROUPS = 6  # distinct values up to which each is a group of its own
_LINES = {
    "": " The line joins the best trial of each value: the other settings at their best.",
    "axes": " The line joins the trials in which only this setting was moved.",
}
_LOGARITHMIC_FROM = 20  # largest over smallest value of a setting


def is_sweep(directory: Path) -> bool:
    """Whether a directory holds a sweep rather than a run."""
    return (directory / ledger.TRIALS).is_file()


def write(sweep_dir: Path) -> Path:
    """Write the report of a sweep beside its trials.

    Args:
        sweep_dir: folder with trials.jsonl.

    Returns:
        Path of report.html.

    Raises:
        ValueError: no trial has finished.
        UserError: trials.jsonl is damaged.
    """
    result = ledger.read(sweep_dir)
    search = _search(sweep_dir)
    objective = search["objective"]
    ranked = ledger.ranked(result, objective)
    if not ranked or ranked[0].status != "finished":
        raise ValueError(f"no trial of {sweep_dir} has finished: there is nothing to report yet")
    page = render(
        "sweep.html",
        shortened=shortened,
        name=sweep_dir.resolve().name,
        objective=_SCORES[objective],
        key=objective,
        score_names={
            name: shown
            for name, shown in _SCORES.items()
            if any(name in trial.scores for trial in result)
        },
        trials=ranked,
        settings=list(ranked[0].config),
        num_failed=sum(trial.status == "failed" for trial in result),
        num_stopped=sum(trial.status == "stopped" for trial in result),
        seconds=sum(trial.seconds for trial in result),
        panels=sensitivity(result, objective, method=search["method"]),
    )
    target = sweep_dir / FILE_NAME
    replace_file(target, page)
    return target


def sensitivity(result: Sequence[SweepTrial], objective: str, *, method: str) -> list[Panel]:
    """A chart per setting of which several values were tried, the one that matters most first.

    Args:
        result: trials of one sweep.
        objective: score that trials are judged by.
        method: of the sweep; by "axes" the line joins what only this setting tells apart.
    """
    finished = [trial for trial in result if trial.status == "finished"]
    curves = ledger.sensitivity(result, objective, method=method)
    line = _LINES.get(method, _LINES[""])
    scores = np.array([trial.scores[objective] for trial in finished])
    panels = {}
    for key in finished[0].config if finished else ():
        values = [trial.config[key] for trial in finished]
        groups = _groups(values)
        means = [scores[groups == one].mean() for one in np.unique(groups)]
        if len(means) < 2:
            continue
        span, best = max(means) - min(means), int(scores.argmax())
        few = len(set(map(shortened, values))) <= _MAX_GROUPS
        points = _points(key, values, scores, curves.get(key, ()) if few else ())
        chart = figures.scatter_chart(points, alt=f"Score by {key}", best=best)
        text = (
            f"Each dot is a trial, the ring is the best one ({shortened(values[best])}). The means "
            f"of the {'values' if few else 'quarters of its range'} of this setting lie up to "
            f"{span:.1f} points apart."
        )
        if few and key in curves:
            text += line
        panels[key] = span, Panel(key, text, chart)
    return [panel for _, panel in sorted(panels.values(), key=lambda item: -item[0])]


def shortened(value: Json) -> str:
    """A value as one reads it: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _groups(values: Sequence[Json]) -> np.ndarray:
    """(n,) group of each trial: its value, or its quarter where numbers differ everywhere."""
    _, groups = np.unique([shortened(value) for value in values], return_inverse=True)
    if groups.max() >= _MAX_GROUPS and _are_numbers(values):
        groups = np.digitize(values, np.quantile(values, (0.25, 0.5, 0.75)))
    return groups


def _points(
    key: str,
    values: Sequence[Json],
    scores: np.ndarray,
    line: Sequence[tuple[str | float, float]],
) -> Scatter:
    if not _are_numbers(values):
        line = [(str(value), score) for value, score in line]
        return Scatter(key, [str(value) for value in values], scores.tolist(), False, line)
    spread = min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC_FROM
    return Scatter(key, [float(value) for value in values], scores.tolist(), spread, line)


def _are_numbers(values: Sequence[Json]) -> TypeGuard[Sequence[float]]:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _search(sweep_dir: Path) -> dict[str, str]:
    """Objective and method that the search names; mAP and no method where it names none."""
    result = {"objective": "mAP", "method": ""}
    try:
        content = yaml.safe_load((sweep_dir / ledger.SEARCH).read_text(encoding="utf-8"))
        result |= {key: str(content[key]) for key in result if key in content}
    except (OSError, ValueError, yaml.YAMLError, TypeError):
        pass
    return result if result["objective"] in _SCORES else result | {"objective": "mAP"}
