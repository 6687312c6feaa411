"""Reliability diagrams: what a run's probabilities say beside how often they were right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from markupsafe import Markup

from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.report import style
from pipelines.report.panels import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence


def panels(run_dir: Path) -> tuple[list[Panel], str]:
    """One per pair of modalities, and why there is none, "" where there are some."""
    try:
        known = calibrated.load(run_dir)
    except UserError as error:
        return [], f"reliability diagrams: {error}."
    if known is None:
        return [], (
            "reliability diagrams, since this run is not calibrated: `crossreid calibrate` gives "
            "its similarities a meaning, `crossreid report` shows it."
        )
    shown = []
    for pair, rows in known.reliability.items():
        title = " with ".join(pair.split()).capitalize()
        text = f"Fitted on {known.source}"
        text += f"; {known.caution}" if known.caution else ""
        text += f". Calibration error (ECE) there: {known.error[pair]:.3f}."
        shown.append(Panel(title, text, chart(rows, alt=f"Reliability, {title}")))
    return shown, ""


def chart(rows: Sequence[Sequence[float]], *, alt: str) -> Markup:
    """A dot per bin of probability: its size says how many pairs, the diagonal is right.

    Args:
        rows: (n, 3) weight, mean probability and share of equal pairs, see
            `reid_core.calibration.reliability`.
        alt: what a screen reader says.

    Returns:
        An `<svg>` element.
    """
    weight, said, true = np.asarray(rows, dtype=float).reshape(-1, 3).T
    with matplotlib.rc_context(style.STYLE):
        figure, axes = style.panel()
        axes.plot([0, 100], [0, 100], ":", color=style.MUTED, linewidth=1.0)
        axes.plot(100 * said, 100 * true, color=style.SPARE[0], linewidth=1.0)
        sizes = 14 + 110 * np.sqrt(weight / weight.max())
        axes.scatter(100 * said, 100 * true, s=sizes, color=style.SPARE[0] + "99", linewidth=0)
        axes.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="said, %", ylabel="true, %")
        return style.svg(figure, alt)
