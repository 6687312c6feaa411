"""Runs side by side: mean and standard deviation over seeds, and what was set differently.

Runs that agree in all that decides a result but the seed are one group, wherever their files lie.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.markup import escape
from rich.table import Table

from pipelines.config import run as configuration
from pipelines.config.files import Tree
from pipelines.config.run import differences
from pipelines.data.sample_list import ROWS
from pipelines.errors import UserError
from pipelines.report import figures, words
from pipelines.report.figures import Bar
from pipelines.report.panels import Panel
from pipelines.report.run import Run
from pipelines.report.run import read as read_run
from pipelines.report.scores import signed
from pipelines.report.templates import render
from pipelines.storage.files import Json, replace_file
from reid_core.methods import METHODS

log = logging.getLogger(__name__)
_SHOWN_ROWS = ("start", "final", "selected")
_FIRST_ROWS = ("final", "selected", "start")  # of the page


@dataclass(frozen=True)
class Spread:
    """A score over the seeds of a group, in percent.

    Attributes:
        mean: over the runs.
        std: sample standard deviation, None for one run.
        values: of each run.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: what it differs in from the first group; of the first, its method.
        runs: in the order given.
        rows: row of the summary -> score -> spread over the runs that have it.
        settings: dotted key -> value, for keys in which groups differ.
    """

    name: str
    runs: tuple[Run, ...]
    rows: Mapping[str, Mapping[str, Spread]]
    settings: Mapping[str, str]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Of the runs."""
        return tuple(str(run.summary.get("seed", "?")) for run in self.runs)


def read(directories: Sequence[Path]) -> list[Group]:
    """Group finished runs.

    Args:
        directories: run directories; the first one's group is what others are compared with.

    Raises:
        UserError: fewer than two, one given twice, not a finished run, or runs of different
            protocols.
    """
    resolved = [directory.resolve() for directory in directories]
    if len(resolved) < 2:
        raise UserError("give two run directories or more")
    if len(set(resolved)) < len(resolved):
        raise UserError("a run directory was given twice: it would count as two seeds")
    runs = []
    for directory in directories:
        try:
            run = read_run(directory)
        except ValueError as error:
            raise UserError(str(error)) from error
        if "final" not in (run.summary.get("rows") or {}):
            raise UserError(f"{directory} has no final scores: has this run finished?")
        runs.append(run)
    protocols = {str(run.summary.get("protocol", "")): run.directory for run in runs}
    if len(protocols) > 1:
        listed = "\n  ".join(f"{folder}: {name}" for name, folder in protocols.items())
        raise UserError(f"these runs were measured by different protocols:\n  {listed}")
    return _grouped(runs)


def table(groups: Sequence[Group]) -> Table:
    """Final scores of each group and the differences to the first, for a terminal."""
    shown = Table(
        title="Scores in %, mean ± standard deviation over seeds (difference to the first)"
    )
    shown.add_column("")
    shown.add_column("seeds")
    for name in words.SCORES.values():
        shown.add_column(name, justify="right", no_wrap=True)
    first = groups[0].rows
    for row in _SHOWN_ROWS:
        if _repeats_final(groups, row):
            continue
        for group in groups:
            result = group.rows.get(row)
            if result is None:
                continue
            cells = [_cell(result.get(key), first.get(row, {}).get(key)) for key in words.SCORES]
            title = f"{words.ROWS[row][0]}: {group.name}"
            shown.add_row(escape(title), ", ".join(group.seeds), *cells)
    return shown


def write(groups: Sequence[Group], path: Path) -> Path:
    """Write the comparison as one HTML file that needs nothing else.

    Raises:
        UserError: the file cannot be written.
    """
    first = groups[0].rows
    stages = dict.fromkeys(row for group in groups for row in group.rows)
    rows = list(dict.fromkeys([*_FIRST_ROWS, *stages]))
    rows = [row for row in rows if row in stages and not _repeats_final(groups, row)]
    page = render(
        "comparison.html",
        groups=groups,
        rows=[(row, *_title(row)) for row in rows],
        score_names=words.SCORES,
        cell=lambda group, row, key: _cell(
            group.rows.get(row, {}).get(key), first.get(row, {}).get(key)
        ),
        keys=sorted({key for group in groups for key in group.settings}),
        panels=_panels(groups),
        protocol=str(groups[0].runs[0].summary.get("protocol", "")),
        protocol_in_words=words.protocol_in_words(
            str(groups[0].runs[0].summary.get("protocol", ""))
        ),
    )
    try:
        replace_file(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path


def _grouped(runs: Sequence[Run]) -> list[Group]:
    members: dict[str, list[Run]] = {}
    trees: dict[str, Tree] = {}
    for run in runs:
        tree = _compared(run)
        key = repr(sorted(_flat(tree).items()))
        members.setdefault(key, []).append(run)
        trees.setdefault(key, tree)
    base = next(iter(trees.values()))
    differing = {
        line.partition(": ")[0] for tree in trees.values() for line in differences(base, tree)
    }
    groups = []
    for key, result in members.items():
        flat = _flat(trees[key])
        settings = {name: str(flat[name]) for name in sorted(differing) if name in flat}
        changed = [line.replace(": ", " ", 1) for line in differences(base, trees[key])]
        name = "; ".join(changed) or words.method(result[0].method).name or "first"
        _warn_of_other_data(result)
        groups.append(Group(name, tuple(result), _spreads(result), settings))
    return groups


def _warn_of_other_data(runs: Sequence[Run]) -> None:
    """A mean over seeds is one of equal images; what tells others apart is said."""
    first = runs[0]
    for run in runs[1:]:
        pairs = zip(_data_of(first).items(), _data_of(run).values(), strict=True)
        apart = [name for (name, one), other in pairs if one and other and one != other]
        if run.root != first.root and run.summary.get("seed") == first.summary.get("seed"):
            apart.append("their seeds do not")
        if apart:
            log.warning(
                "%s and %s are averaged as seeds of one data set, but their data differ (%s): %s "
                "and %s",
                *(first.directory, run.directory, "; ".join(apart), first.root, run.root),
            )


def _data_of(run: Run) -> dict[str, Json]:
    """What tells data sets apart, None where a run does not say it."""
    ap = run.rankings.get("final", {}).get("ap")
    try:
        rows = hashlib.sha256(gzip.decompress((run.directory / ROWS).read_bytes())).hexdigest()
    except (OSError, EOFError, zlib.error):
        rows = ""
    return {
        "other training rows": rows or None,
        "other numbers of queries": None if ap is None else int(np.isfinite(ap).sum()),
    }


def _compared(run: Run) -> Tree:
    """What decides a run's result, without what may differ in a group: the seed and places.

    As a resumed run must agree in it, so that settings which an older version did not know have
    their defaults. A configuration that this version cannot read is compared as it is written.
    """
    try:
        tree = configuration.validate({**run.config}, source="config.yaml").identity()
    except UserError as error:
        log.warning("%s is compared by its settings as they are written: %s", run.directory, error)
        others = {"ray", "trainer", *METHODS} - {run.method}
        tree = {key: value for key, value in run.config.items() if key not in others}
    data = tree.get("data")
    return {
        **{key: value for key, value in tree.items() if key != "seed"},
        "data": {key: x for key, x in data.items() if key != "root"}
        if isinstance(data, Mapping)
        else {},
        "start_from": tree.get("start_from") is not None,
    }


def _flat(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _spreads(runs: Sequence[Run]) -> dict[str, dict[str, Spread]]:
    rows = dict.fromkeys(row for run in runs for row in run.summary["rows"])
    result: dict[str, dict[str, Spread]] = {}
    for row in rows:
        result[row] = {}
        for score in words.SCORES:
            values = tuple(
                float(run.summary["rows"][row][score])
                for run in runs
                if run.summary["rows"].get(row, {}).get(score) is not None
            )
            if values:
                std = stdev(values) if len(values) > 1 else None
                result[row][score] = Spread(fmean(values), std, values)
    return result


def _cell(spread: Spread | None, first: Spread | None) -> str:
    if spread is None:
        return "not measured"
    if first is None or first is spread:
        return str(spread)
    return f"{spread} ({signed(spread.mean - first.mean)})"


def _repeats_final(groups: Sequence[Group], row: str) -> bool:
    """Whether a stage, or a selected epoch, is the last one of every group: they score the same."""
    return row != "final" and all(group.rows.get(row) == group.rows["final"] for group in groups)


def _title(row: str) -> tuple[str, str]:
    if row in words.ROWS:
        return words.ROWS[row]
    stage = words.stage(row)
    return f"After {stage.label.lower()}", stage.name


def _panels(groups: Sequence[Group]) -> list[Panel]:
    """A chart per headline score: a bar per group, a dot per seed."""
    panels = []
    for key in ("rank1", "mAP"):
        bars = [
            Bar(str(number), group.rows["final"][key].mean, group.rows["final"][key].values)
            for number, group in enumerate(groups, start=1)
            if key in group.rows.get("final", {})
        ]
        start = groups[0].rows.get("start", {}).get(key)
        text = "Bars are means over seeds, dots the seeds. The numbers are those of the table."
        if start is not None:
            text += " The dotted line is the start of the first group."
        chart = figures.bar_chart(
            bars, alt=f"{words.SCORES[key]} by group", line=None if start is None else start.mean
        )
        panels.append(Panel(f"{words.SCORES[key]} after the last epoch, %", text, chart))
    return panels
