"""Charts as inline SVG, small enough to be read on a phone.

Every chart is one narrow panel; the page lays panels side by side where there is room. What colors
tell (`style.py`), line style or hatching says once more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from pipelines.report import words
from pipelines.report.style import (
    INK,
    MUTED,
    PHASE_COLORS,
    RIGHT,
    SPARE,
    STYLE,
    WRONG,
    legend,
    panel,
    svg,
)

_MAX_TICKS = 10
_MAX_MARKED = 30  # Beyond this many epochs, markers hide the line.


@dataclass(frozen=True)
class Series:
    """One line of a chart over epochs.

    Attributes:
        label: its name in the legend.
        color: of the line.
        values: one per epoch; None where nothing was measured (the line goes on), NaN breaks it.
        dash: matplotlib line style.
        start: height of a thin line for the value before training, None for no such line.
    """

    label: str
    color: str
    values: Sequence[float | None]
    dash: str = "-"
    start: float | None = None


@dataclass(frozen=True)
class Curve:
    """One row's CMC in a chart of ranks; `cmc` (R,) holds fractions."""

    label: str
    cmc: np.ndarray
    color: str
    dash: str


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, with a dot for each of the values that it is the mean of."""

    label: str
    mean: float
    values: Sequence[float]


@dataclass(frozen=True)
class Scatter:
    """Scores against one setting.

    Attributes:
        label: of the axis.
        xs: numbers, or words where the setting is none.
        ys: scores.
        logarithmic: whether the numbers spread over powers of ten.
        line: (x, y) points that are joined, none for dots alone.
    """

    label: str
    xs: Sequence[float] | Sequence[str]
    ys: Sequence[float]
    logarithmic: bool
    line: Sequence[tuple[str | float, float]] = ()


def epochs_chart(
    stages: Sequence[tuple[str, int]],
    series: Sequence[Series],
    *,
    alt: str,
    least: tuple[float, float] | None = None,
) -> Markup:
    """Lines over the epochs of one or more stages.

    Args:
        stages: (stage, epoch from 0) of each point on the axis, in order.
        series: lines with one value per point.
        alt: what a screen reader says.
        least: range that the value axis shows in any case, None to fit the values alone.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        marker = "o" if len(stages) <= _MAX_MARKED else None
        for one in series:
            for number, span in enumerate(_spans(stages)):
                points = {x: value for x in span if (value := one.values[x]) is not None}
                axes.plot(
                    list(points),
                    list(points.values()),
                    color=one.color,
                    linestyle=one.dash,
                    marker=marker,
                    label=one.label if number == 0 else None,
                )
            if one.start is not None:
                axes.axhline(one.start, color=one.color, linewidth=1.0, linestyle=":")
        if least:
            _cover(axes, series, least)
        _epoch_axis(axes, stages)
        legend(axes)
        return svg(figure, alt)


def phase_chart(
    stages: Sequence[tuple[str, int]], phases: Mapping[str, Sequence[float]], *, alt: str
) -> Markup:
    """Stacked bars: seconds of each phase in every epoch.

    Args:
        stages: (stage, epoch from 0) of each bar, in order.
        phases: phase -> seconds per bar.
        alt: what a screen reader says.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        middles = np.arange(len(stages))
        edges = np.ravel([middles - 0.41, middles + 0.41], order="F")
        below = np.zeros(len(edges) - 1)  # Every second interval is the gap after a bar: 0 high.
        for name, color in phase_colors(phases).items():
            above = below.copy()
            above[::2] += phases[name]
            axes.stairs(above, edges, baseline=below, fill=True, color=color)
            below = above
        _epoch_axis(axes, stages)
        return svg(figure, alt)


def cmc_chart(curves: Sequence[Curve], *, alt: str) -> Markup:
    """Share of queries with a right answer among the first k, for k = 1, 2, ...

    Args:
        curves: one per row of the main table.
        alt: what a screen reader says.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for curve in curves:
            ranks = np.arange(1, len(curve.cmc) + 1)
            axes.plot(ranks, 100 * curve.cmc, curve.dash, color=curve.color, label=curve.label)
        axes.set(ylim=(0, 102), xlabel="k, answers looked at")
        axes.set_xticks([1, 5, 10, 15, 20])
        legend(axes)
        return svg(figure, alt)


def bar_chart(bars: Sequence[Bar], *, alt: str, line: float | None = None) -> Markup:
    """Means as bars, what they are means of as dots.

    Args:
        bars: from left to right.
        alt: what a screen reader says.
        line: height of a dotted line, None for none.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        places = np.arange(len(bars))
        axes.bar(places, [bar.mean for bar in bars], width=0.55, color=SPARE[0] + "55")
        for place, bar in zip(places, bars, strict=True):
            axes.plot([place] * len(bar.values), bar.values, "o", color=INK)
        if line is not None:
            axes.axhline(line, color=MUTED, linewidth=1.0, linestyle=":")
        axes.set_xticks(places, [bar.label for bar in bars])
        axes.set_xlim(-0.6, max(len(bars), 3) - 0.4)
        return svg(figure, alt)


def scatter_chart(points: Scatter, *, alt: str, best: int) -> Markup:
    """Scores against one setting, the best trial marked.

    Args:
        points: what is shown.
        alt: what a screen reader says.
        best: index of the marked point.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        axes.plot(points.xs, points.ys, "o", color=SPARE[0] + "99", markeredgewidth=0)
        axes.plot(*zip(*points.line, strict=True) if points.line else ((), ()), color=SPARE[0])
        axes.plot([points.xs[best]], [points.ys[best]], "o", color=WRONG, fillstyle="none",
                  markersize=10)  # fmt: skip
        if points.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_xlabel(points.label)
        axes.margins(x=0.1)
        return svg(figure, alt)


def similarity_chart(
    right: np.ndarray,
    wrong: np.ndarray,
    edges: np.ndarray,
    *,
    alt: str,
    limits: tuple[float, float],
    top: float,
) -> Markup:
    """Shares of right and wrong pairs by similarity.

    Args:
        right: (B,) counts of pairs of one person.
        wrong: (B,) counts of pairs of two people.
        edges: (B + 1,) similarities between which they were counted.
        alt: what a screen reader says.
        limits: shown range of similarities.
        top: upper end of the value axis, %.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for counts, color, face, hatch, label in (
            (wrong, WRONG, "none", "////", "two different people"),
            (right, RIGHT, RIGHT + "40", None, "the same person"),
        ):
            axes.stairs(
                share(counts), edges, fill=True, facecolor=face, edgecolor=color, hatch=hatch,
                linewidth=1.4, label=label,
            )  # fmt: skip
        axes.set(xlim=limits, ylim=(0, top), xlabel="similarity")
        legend(axes)
        return svg(figure, alt)


def share(counts: np.ndarray) -> np.ndarray:
    """Counts as percentages of their sum, all 0 where there is none."""
    percentages: np.ndarray = 100 * counts / max(counts.sum(), 1)
    return percentages


def phase_colors(phases: Collection[str]) -> dict[str, str]:
    """A color for each phase, in the order in which phases follow each other in an epoch."""
    known = [name for name in words.PHASES if name in phases]
    others = [name for name in phases if name not in words.PHASES]
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(others)}
    return {name: PHASE_COLORS[name] for name in known} | spare


def _cover(axes: Axes, series: Sequence[Series], least: tuple[float, float]) -> None:
    """Let the value axis show at least a range, and a little air beyond values outside of it."""
    values = [value for one in series for value in one.values if value is not None]
    values = [value for value in values if math.isfinite(value)]
    low, high = min([*values, least[0]]), max([*values, least[1]])
    air = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - air * (low < least[0]), high + air * (high > least[1] or high == low))


def _spans(stages: Sequence[tuple[str, int]]) -> list[range]:
    """Runs of positions that belong to one stage."""
    starts = [i for i in range(len(stages)) if i == 0 or stages[i][0] != stages[i - 1][0]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(stages)], strict=True)]


def _epoch_axis(axes: Axes, stages: Sequence[tuple[str, int]]) -> None:
    """Epochs counted from 1 within each stage, with the stage's name below its part of the axis."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        ticks = [x for x, (_, epoch) in enumerate(stages) if (epoch + 1) % step == 0]
        if len(ticks) <= _MAX_TICKS:
            break
    axes.set_xticks(ticks, [str(stages[x][1] + 1) for x in ticks])
    axes.set_xlim(-0.6, len(stages) - 0.4)
    spans = _spans(stages)
    for number, span in enumerate(spans):
        if number:
            axes.axvline(span.start - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        if len(span) < 0.12 * len(stages):
            continue
        label = words.stage(stages[span.start][0]).label
        axes.annotate(
            label if len(spans) > 1 else f"{label}, epoch",
            ((span.start + span.stop - 1) / 2, 0), xycoords=axes.get_xaxis_transform(),
            xytext=(0, -17), textcoords="offset points", ha="center", va="top", color=MUTED,
        )  # fmt: skip
