"""The page of a data set's trials: their mean, and each of them."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines import folds
from pipelines.report import words


def write(directory: Path) -> Path:
    """Write report.html beside the trials.

    Raises:
        UserError: not all trials are finished.
    """
    summary = folds.read(directory)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("folds.html").render(
        name=directory.resolve().name, summary=summary, score_names=words.SCORES
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
