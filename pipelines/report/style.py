"""What all charts have in common: colors, the empty panel, its names, its text as SVG.

Text stays text, so that the page's font applies and the numbers can be searched and copied. The
colors of the two modalities and of right and wrong are told apart by color-blind readers.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def panel() -> tuple[Figure, Axes]:
    """An empty panel; the same margins everywhere, so that panels side by side line up."""
    figure = Figure(figsize=_SIZE_INCHES)
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.19, top=0.88)
    return figure, figure.add_subplot()


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
