"""The page of a data set's trials: their mean, and each of them."""

from __future__ import annotations

from pathlib import Path

from pipelines.evaluation import regdb_trials
from pipelines.report import words
from pipelines.report.templates import render
from pipelines.storage.files import replace_file


def write(directory: Path) -> Path:
    """Write report.html beside the trials.

    Raises:
        UserError: not all trials are finished.
    """
    summary = regdb_trials.read(directory)
    page = render(
        "regdb_trials.html",
        name=directory.resolve().name,
        summary=summary,
        score_names=words.SCORES,
    )
    path = directory / "report.html"
    replace_file(path, page)
    return path
