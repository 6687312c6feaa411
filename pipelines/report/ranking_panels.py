"""The charts of evaluation/*.npz: how early right answers come, how far strangers are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from pipelines.report import figures, style, words
from pipelines.report.figures import Curve
from pipelines.report.panels import Panel


@dataclass(frozen=True)
class _Hills:
    """Pairs of one person (bins,) and of two, by similarity: `right`, `wrong`."""

    pair: str
    row: str
    right: np.ndarray
    wrong: np.ndarray
    bins: np.ndarray


def retrieval(
    rankings: Mapping[str, Mapping[str, np.ndarray]], *, several: bool = False
) -> list[Panel]:
    """CMC of all rows in one panel.

    Args:
        rankings: arrays of evaluation/<row>.npz by row.
        several: whether scores are means over galleries that are drawn; these are of the first.
    """
    ends = {"start": ("start", style.MUTED, ":"), "final": ("full method", style.INK, "-")}
    spare, curves = cycle(style.SPARE), []
    for row, arrays in rankings.items():
        label, color, dash = ends.get(row) or (_after(row), next(spare), "--")
        if "cmc" in arrays:
            curves.append(Curve(label, arrays["cmc"], color, dash))
    which = ", which is of the first gallery that is drawn" if several else ""
    text = (
        f"How often a right answer is among the first k. The curve starts at Rank-1{which}; the "
        "higher and the earlier it rises, the fewer pictures somebody has to look through."
    )
    if not curves:
        return []
    return [Panel("Right answers among the first k, %", text, figures.cmc_chart(curves, alt="CMC"))]


def similarities(rankings: Mapping[str, Mapping[str, np.ndarray]]) -> list[Panel]:
    """Histograms per pair of modalities, at the start and after training, on the same axes."""
    hills = [
        _Hills(str(pair), row, right, wrong, arrays["bins"])
        for row, arrays in rankings.items()
        if row in ("start", "final")
        and {"pairs", "same_hist", "different_hist", "bins"} <= set(arrays)
        for pair, right, wrong in zip(
            arrays["pairs"], arrays["same_hist"], arrays["different_hist"], strict=True
        )
        if right.any()  # without two pictures of anybody there is nothing to compare
    ]
    if not hills:
        return []
    top = 1.08 * max(figures.share(x).max() for one in hills for x in (one.right, one.wrong))
    limits = _used(hills)
    panels = []
    for one in hills:
        overlap = np.minimum(figures.share(one.right), figures.share(one.wrong)).sum()
        when = "at the start" if one.row == "start" else "after training"
        title = f"{' with '.join(one.pair.split()).capitalize()}, {when}"
        chart = figures.similarity_chart(
            one.right, one.wrong, one.bins, alt=f"Similarities, {title}", limits=limits, top=top
        )
        panels.append(Panel(title, f"The hills share {overlap:.0f} %.", chart))
    return panels


def _after(stage: str) -> str:
    return f"after {words.stage(stage).label.lower()}"


def _used(hills: Sequence[_Hills]) -> tuple[float, float]:
    """Range of similarities that occur; the bins are those of all hills."""
    bins = hills[0].bins
    filled = np.flatnonzero(np.sum([one.right + one.wrong for one in hills], axis=0))
    if not filled.size:
        return float(bins[0]), float(bins[-1])
    return float(bins[filled[0]]), float(bins[filled[-1] + 1])
