"""Charts as inline SVG, small enough to be read on a phone.

Every chart is one narrow panel; the page lays panels side by side where there is room. Text stays
text, so that the page's font applies and the numbers can be searched and copied. The colors of
the two modalities and of right and wrong are told apart by color-blind readers; line style or
hatching says the same once more.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report import words

COLORS = {"visible": "#b87a00", "infrared": "#5a4fa3"}
INK, MUTED, LINE = "#1d2433", "#5d6678", "#e3e6ec"
RIGHT, WRONG = "#008a64", "#d55e00"
SPARE = ("#0f7b8a", "#a8447e", "#6b7d3a", "#8a6d5b")
PHASE_COLORS = {
    "embed": "#3b6ea5",
    "cluster": "#8263a6",
    "match": "#c26a9e",
    "plan": "#b9bfca",
    "input": "#e2a653",
    "step": "#2f9488",
    "checkpoint": "#7a8494",
    "evaluate": "#a9cbe0",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossreid",
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
}
_SIZE_INCHES = (3.9, 2.45)
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


def panel() -> tuple[Figure, Axes]:
    """An empty panel; the same margins everywhere, so that panels side by side line up."""
    figure = Figure(figsize=_SIZE_INCHES)
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.19, top=0.88)
    return figure, figure.add_subplot()


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


def legend(axes: Axes) -> None:
    """Names above the axes, where there is more than one thing to name, in as few lines as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    length = sum(map(len, labels))
    columns = 4 if length <= 36 else 3 if length <= 50 else 2
    axes.figure.subplots_adjust(top=0.95 - 0.07 * math.ceil(len(handles) / columns))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.14, 0.98), ncols=columns)


def svg(figure: Figure, alt: str) -> Markup:
    """The figure as an element that can stand in a page beside others.

    Name spaces and metadata are dropped: HTML needs none, and a page without them holds no foreign
    address. Fonts are dropped for the page's own. Ids get a prefix from `alt`, which must therefore
    differ between the charts of a page: all of them share one name space.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    # A hundredth of a point cannot be seen; six decimals would be half of the file.
    text = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", alt.lower())
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text)
    head = f'<svg role="img" aria-label="{escape(alt)}" '
    return Markup(text.replace("<svg ", head, 1))
