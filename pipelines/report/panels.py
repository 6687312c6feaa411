"""Which charts a run has: every panel is made from what the run recorded, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.report import figures, style, words
from pipelines.report.figures import Series
from pipelines.runs.records import EpochLine as Epoch
from pipelines.runs.records import Summary


@dataclass(frozen=True)
class Panel:
    """A chart with a heading and the sentence above it."""

    title: str
    words: str
    chart: Markup


@dataclass(frozen=True)
class Phase:
    """Share of one phase in the training time.

    Attributes:
        name: as recorded.
        words: what happens in it.
        color: of its bars.
        seconds: over all epochs.
        share: of all phases, %.
    """

    name: str
    words: str
    color: str
    seconds: float
    share: float


def losses(epochs: Sequence[Epoch]) -> list[Panel]:
    """One panel per stage that recorded losses."""
    panels = []
    for name in dict.fromkeys(epoch["stage"] for epoch in epochs):
        stage = words.stage(name)
        own = [epoch for epoch in epochs if epoch["stage"] == name and epoch.get("losses")]
        if own:
            series = _by_key(own, lambda epoch: epoch["losses"])
            total = _first_and_last(own, lambda epoch: epoch["losses"].get("total"))
            text = "What the optimizer makes smaller: the lower, the better the training set fits."
            if total:
                text += f" In total from {total[0]:.2f} to {total[1]:.2f}."
            chart = figures.epochs_chart(
                _points(own), series, alt=f"Loss by epoch, {stage.label} {stage.name}"
            )
            panels.append(Panel(f"Loss in {stage.label.lower()} ({stage.name})", text, chart))
    return panels


def groups(epochs: Sequence[Epoch]) -> list[Panel]:
    """Number of groups, outliers and pairs of groups."""
    panels = []
    if own := _with(epochs, "clusters"):
        last = _spoken(own[-1]["clusters"], "{:.0f}")
        panels.append(
            _modalities(
                own,
                lambda epoch: epoch["clusters"],
                "Groups found",
                f"How many groups of look-alike pictures were formed. At the end: {last}.",
            )
        )
    if own := [epoch for epoch in _with(epochs, "outliers") if epoch.get("rows")]:
        last = _spoken(_outlier_share(own[-1]), "{:.1f} %")
        panels.append(
            _modalities(
                own,
                _outlier_share,
                "Pictures left out, %",
                "Pictures that resemble no group are left out of an epoch rather than forced into "
                f"one. At the end: {last}.",
            )
        )
    if own := _with(epochs, "visible_outliers_before_mining"):
        last = _spoken(_mined_share(own[-1]), "{:.1f} %")
        panels.append(
            _modalities(
                own,
                _mined_share,
                "Left out before and after mining, %",
                "What resembles no group gets one where the picture or sentence that belongs to "
                f"it has one. At the end: {last}.",
            )
        )
    if own := _with(epochs, "pairs"):
        series = [Series("pairs", style.INK, [epoch["pairs"] for epoch in own])]
        text = "How many groups of one kind of camera were paired with a group of the other."
        if "text" in own[-1].get("clusters", {}):
            text = "How many pictures with a sentence have a group on both sides."
        if similarity := (own[-1].get("pair_similarity") or {}).get("mean"):
            text += f" Mean similarity of a pair in the last epoch: {similarity:.2f}."
        if decided := _with(own, "whitened"):
            num = int(sum(epoch["whitened"] for epoch in decided))
            text += f" They were compared after whitening in {num} of {len(decided)} epochs."
        chart = figures.epochs_chart(
            _points(own), series, alt="Paired groups by epoch", least=(0, 0)
        )
        panels.append(Panel("Paired groups", text, chart))
    if own := _with(epochs, "mutual_nearest"):
        values = [100 * epoch["mutual_nearest"] for epoch in own]
        text = (
            "How many groups are the nearest of the group that is nearest to them on the other "
            "side. It needs no labels: about 60 where half of the pairs are right at the start, "
            "below 30 where few are. "
            f"First {values[0]:.0f} %, at the end {values[-1]:.0f} %."
        )
        panels.append(_shares(own, {"mutual": values}, "Mutual nearest groups, %", text))
    return panels


def truth(epochs: Sequence[Epoch]) -> list[Panel]:
    """How right the groups and pairs were, where the people are known."""
    own = _with(epochs, "truth")
    panels = []
    for key, title, text in (
        (
            "ari",
            "Agreement with the people (ARI)",
            "Adjusted Rand index between groups and people: 1 is perfect, 0 is what random groups "
            "reach.",
        ),
        (
            "purity",
            "Purity of the groups",
            "Share of pictures that belong to the most frequent person of their group. Small "
            "groups are pure easily, so read it beside the number of groups.",
        ),
    ):

        def score(epoch: Epoch, key: str = key) -> dict[str, float]:
            values = {name: _of_truth(epoch, name, key) for name in epoch["truth"]}
            return {name: value for name, value in values.items() if value is not None}

        if shown := [epoch for epoch in own if score(epoch)]:
            last = _spoken(score(shown[-1]), "{:.2f}")
            text = f"{text} At the end: {last}."
            panels.append(_modalities(shown, score, title, text, least=(0, 1)))
    matched = [epoch for epoch in own if _of_truth(epoch, "matching_accuracy") is not None]
    if matched:
        values = [100 * (_of_truth(epoch, "matching_accuracy") or 0.0) for epoch in matched]
        text = (
            "Share of the paired groups whose most frequent person is the same on both sides. "
            f"First {values[0]:.0f} %, at the end {values[-1]:.0f} %."
        )
        panels.append(_shares(matched, {"right pairs": values}, "Matching accuracy, %", text))
    if drawn := [epoch for epoch in own if _of_truth(epoch, "association", "recall")]:
        shares = {
            name: [100 * (_of_truth(epoch, "association", name) or 0.0) for epoch in drawn]
            for name in ("precision", "recall")
        }
        text = (
            "Of all two pictures from different kinds of camera. Precision: how many that are "
            "drawn together show one person. Recall: how many of one person are drawn together. "
            "At the end "
            + ", ".join(f"{name} {values[-1]:.0f} %" for name, values in shares.items())
            + "."
        )
        panels.append(_shares(drawn, shares, "Pictures drawn together rightly, %", text))
    return panels


def scores(epochs: Sequence[Epoch], summary: Summary) -> list[Panel]:
    """Rank-1 and mAP of the epochs that were evaluated."""
    own = _with(epochs, "scores")
    if not own:
        return []
    start = (summary.get("rows") or {}).get("start") or {}
    series = [
        Series(label, color, [epoch["scores"].get(key) for epoch in own], dash, start.get(key))
        for key, label, color, dash in (
            ("rank1", "Rank-1", style.INK, "-"),
            ("mAP", "mAP", style.SPARE[0], "--"),
        )
    ]
    text = "Scores on people that were never trained on."
    if start:
        text += " The dotted lines are the start."
    chart = figures.epochs_chart(_points(own), series, alt="Scores by epoch")
    return [Panel("Rank-1 and mAP, %", text, chart)]


def times(epochs: Sequence[Epoch]) -> tuple[list[Panel], list[Phase]]:
    """Seconds per phase and epoch as bars, and the share of each phase."""
    own = _with(epochs, "seconds")
    if not own:
        return [], []
    names = dict.fromkeys(name for epoch in own for name in epoch["seconds"])
    seconds = {name: [epoch["seconds"].get(name) or 0.0 for epoch in own] for name in names}
    total = sum(sum(values) for values in seconds.values())
    per_epoch = np.sum(list(seconds.values()), axis=0)
    text = (
        f"Where the time of each epoch went. Half of the epochs took less than "
        f"{np.median(per_epoch):.1f} s."
    )
    speeds = [epoch["speed"] for epoch in own if epoch.get("speed")]
    if memory := [num for speed in speeds if (num := speed.get("device_memory_bytes"))]:
        text += f" Peak memory of a GPU: {max(memory) / 2**30:.1f} GiB."
    chart = figures.phase_chart(_points(own), seconds, alt="Seconds per phase and epoch")
    phases = [
        Phase(name, words.PHASES.get(name, ""), color, sum(seconds[name]),
              100 * sum(seconds[name]) / max(total, 1e-9))
        for name, color in figures.phase_colors(seconds).items()
    ]  # fmt: skip
    return [Panel("Seconds per epoch", text, chart)], phases


def _modalities(
    epochs: Sequence[Epoch],
    values: Callable[[Epoch], Mapping[str, float]],
    title: str,
    text: str,
    *,
    least: tuple[float, float] = (0, 0),
) -> Panel:
    chart = figures.epochs_chart(
        _points(epochs), _by_key(epochs, values), alt=f"{title} by epoch", least=least
    )
    return Panel(title, text, chart)


def _shares(
    epochs: Sequence[Epoch], values: Mapping[str, list[float]], title: str, text: str
) -> Panel:
    """Percentages by epoch, from 0 to 100."""
    series = [
        Series(name, color, of_name, dash)
        for (name, of_name), color, dash in zip(
            values.items(), (style.INK, style.SPARE[0]), ("-", "--"), strict=False
        )
    ]
    alt = f"{title.removesuffix(', %')} by epoch"
    return Panel(
        title, text, figures.epochs_chart(_points(epochs), series, alt=alt, least=(0, 100))
    )


def _by_key(
    epochs: Sequence[Epoch], values: Callable[[Epoch], Mapping[str, float]]
) -> list[Series]:
    """A line per key; modalities in their color, a total in ink, others in spare colors."""
    names = list(dict.fromkeys(name for epoch in epochs for name in values(epoch)))
    fixed = {"total": style.INK, **style.COLORS}
    others = [name for name in names if name not in fixed]
    dashes = {"infrared": "--", "total": "-", "visible": "-"}
    # where the spare colors come round again, the dashes differ
    spare = ("-.", ":", "--")
    return [
        Series(
            name.replace("_", " "),
            fixed.get(name) or style.SPARE[others.index(name) % len(style.SPARE)],
            [values(epoch).get(name) for epoch in epochs],
            dashes.get(name) or spare[others.index(name) // len(style.SPARE) % len(spare)],
        )
        for name in names
    ]


def _outlier_share(epoch: Epoch) -> dict[str, float]:
    """Outliers as a percentage of all rows, per modality."""
    rows = epoch["rows"]
    return {
        name: 100 * count / rows[name]
        for name, count in epoch["outliers"].items()
        if rows.get(name)
    }


def _mined_share(epoch: Epoch) -> dict[str, float]:
    """Outliers before and after mining as a percentage of all rows, per modality."""
    counts: Mapping[str, Any] = epoch  # the method's own are under names of its own
    return {
        f"{name} {when}": 100 * counts[f"{name}_outliers_{when}_mining"] / count
        for name, count in epoch["rows"].items()
        for when in ("before", "after")
    }


def _with(epochs: Sequence[Epoch], key: str) -> list[Epoch]:
    """Epochs that recorded something under a key; 0 is something."""
    return [epoch for epoch in epochs if epoch.get(key) not in (None, {})]


def _of_truth(epoch: Epoch, name: str, key: str = "") -> float | None:
    """A number of an epoch's "truth", of one modality or group where there is a key."""
    result = epoch["truth"].get(name)
    if isinstance(result, Mapping):
        return result.get(key)
    return None if key else result


def _points(epochs: Sequence[Epoch]) -> list[tuple[str, int]]:
    return [(epoch["stage"], epoch["epoch"]) for epoch in epochs]


def _first_and_last(
    epochs: Sequence[Epoch], value: Callable[[Epoch], float | None]
) -> tuple[float, float] | None:
    result = [one for epoch in epochs if (one := value(epoch)) is not None]
    return (result[0], result[-1]) if result else None


def _spoken(values: Mapping[str, float], form: str) -> str:
    """ "12 visible, 13 infrared"."""
    return ", ".join(f"{form.format(value)} {name}" for name, value in values.items())
