"""Writes report.html: everything in one file, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.report import (
    panels,
    ranking_panels,
    ranklists,
    reliability,
    run_warnings,
    scores,
    words,
)
from pipelines.report.panels import Panel
from pipelines.report.run import Run, read
from pipelines.report.templates import duration, render
from pipelines.runs import learned_prompts, warned
from pipelines.runs.records import Summary, is_drawn
from pipelines.storage.files import Json, replace_file
from reid_core.datasets import LAYOUTS

if TYPE_CHECKING:
    from pipelines.report import heatmaps

FILE_NAME = "report.html"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: id of its heading.
        title: its heading.
        words: what it is about.
        panels: its charts.
        missing: what is not shown, and why.
    """

    anchor: str
    title: str
    words: str
    panels: list[Panel]
    missing: list[str]


def write(run_dir: Path) -> Path:
    """Write the report of a run beside its results.

    Args:
        run_dir: directory with metrics.jsonl and whatever else the run left: config.yaml,
            environment.json, summary.json, evaluation/<row>.npz (`bins` there are the edges of the
            histograms). A missing part is left out with a sentence that says so.

    Returns:
        Path of report.html, which replaces an older one at once or not at all.

    Raises:
        ValueError: there is no metrics.jsonl.
    """
    run = read(Path(run_dir))
    target = run.directory / FILE_NAME
    replace_file(target, _render(run))
    return target


def _render(run: Run) -> str:
    time_panels, phases = panels.times(run.epochs)
    heat_pairs, heat_missing = _heat_maps(run)
    return render(
        "run.html",
        run=run,
        method=words.method(run.method, labels=_labels(run)),
        facts=_facts(run),
        known=_told(run),
        stages=_stages(run),
        headline=scores.headline(run.summary),
        rows=scores.rows(run.summary),
        why_no_scores=scores.why_none(run.summary),
        score_names=words.SCORES,
        scores_in_words=words.SCORES_IN_WORDS,
        protocol_in_words=words.protocol_in_words(str(run.summary.get("protocol", ""))),
        evaluation=run.summary.get("evaluation") or {},
        is_drawn=is_drawn,
        sections=_sections(run),
        warnings=run_warnings.of_run(run.epochs, warned.read(run.directory)),
        num_warnings=run_warnings.SHOWN,
        rank_groups=_rank_groups(run),
        rank_missing=_rank_missing(run),
        heat_pairs=heat_pairs,
        heat_missing=heat_missing,
        phrases=learned_prompts.phrases(run.directory),
        time_panels=time_panels,
        phases=phases,
        whole_run=_whole_run(run.summary),
        config=_listing(run.config),
        machine=run.environment.get("machine") or {},
        versions=_versions(run.environment),
    )


def _labels(run: Run) -> str:
    settings = run.config.get(run.method)
    return str(settings.get("labels", "")) if isinstance(settings, Mapping) else ""


def _facts(run: Run) -> dict[str, str]:
    """The line of small print below the headline."""
    kind = str(run.data.get("kind", ""))
    data = LAYOUTS[kind].title if kind in LAYOUTS else kind
    facts = {
        "Method": words.method(run.method).name,
        "Data": f"generated people, {data} layout" if run.generated else data,
    }
    facts["Seed"] = str(run.summary.get("seed", run.config.get("seed", "")))
    facts["Started"] = _started(run)
    if total := (run.summary.get("seconds") or {}).get("total"):
        facts["Took"] = duration(total)
    return {name: value for name, value in facts.items() if value}


def _started(run: Run) -> str:
    """When the run began, in UTC where the zone is known; "" where nothing tells."""
    started = str(run.environment.get("started", ""))
    try:
        began = datetime.fromisoformat(started)
        began = began.astimezone(UTC) if began.tzinfo else began
    except (ValueError, OverflowError):
        return started
    zone = " UTC" if began.tzinfo else ""
    return began.strftime(f"%d %B %Y, %H:%M{zone}").lstrip("0")


def _told(run: Run) -> str:
    """What was done, continued from the method's introduction."""
    parts = []
    rows = next((epoch["rows"] for epoch in run.epochs if epoch.get("rows")), None)
    if rows:
        counts = " and ".join(
            f"{count:,} {words.ROWS_TRAINED.get(name, name)}" for name, count in rows.items()
        )
        parts.append(f"It trained on {counts}.")
    if run.generated:
        parts.append("The people in this run do not exist: a program drew them.")
    if run.stages:
        num = len(run.stages)
        spelled = _NUMBERS[num] if num < len(_NUMBERS) else str(num)
        parts.append(f"Training went through {spelled} {'stages' if num > 1 else 'stage'}.")
    else:
        parts.append("No epoch of training has finished yet.")
    return " ".join(parts)


def _stages(run: Run) -> list[dict[str, object]]:
    """Name, description, number of epochs and time of each stage."""
    result = []
    for name in run.stages:
        own = [epoch for epoch in run.epochs if epoch["stage"] == name]
        seconds = sum(sum(filter(None, (epoch.get("seconds") or {}).values())) for epoch in own)
        stage, paired = (
            words.stage(name, run.method),
            sum(bool(epoch.get("pairs")) for epoch in own),
        )
        known = [stage.description, stage.coupled.format(paired) if paired else ""]
        result.append(
            {
                "stage": stage,
                "told": " ".join(filter(None, known)),
                "num_epochs": len(own),
                "seconds": seconds,
            }
        )
    return result


def _sections(run: Run) -> list[Section]:
    """The parts of the page that consist of charts."""
    of_groups = [] if words.method(run.method).is_told_who else _of_groups(run)
    losses = (panels.losses(run.epochs), "metrics.jsonl holds no losses.")
    scores_by_epoch = (
        panels.scores(run.epochs, run.summary),
        "scores by epoch, since no epoch was evaluated during training.",
    )
    several = any(map(is_drawn, (run.summary.get("evaluation") or {}).values()))
    no_arrays = "since there is no readable evaluation/*.npz of this version in this run."
    return [
        _section("losses", "Losses", "", losses),
        *of_groups,
        _section(
            "finding",
            "Finding people",
            "Queries and answers show people that were never trained on.",
            scores_by_epoch,
            (ranking_panels.retrieval(run.rankings, several=several), f"ranks, {no_arrays}"),
        ),
        _section(
            "similarities",
            "Alike and not alike",
            "Two at a time, of one person or of two, and how similar the program finds them, "
            "across modalities and within each, in percent of such pairs. The less the two hills "
            "overlap, the better people can be told apart.",
            (ranking_panels.similarities(run.rankings), f"similarities, {no_arrays}"),
        ),
        _section(
            "certainty",
            "How sure is an answer?",
            "A similarity becomes the probability that both pictures show one person. Each dot "
            "holds the pairs that were given about the same probability, larger dots more of them; "
            "where it was right, the dots lie on the dotted line.",
            reliability.panels(run.directory),
        ),
    ]


def _of_groups(run: Run) -> list[Section]:
    """What a run found out about who is who, and how much of it was right."""
    whose = "these people are generated" if run.generated else "this data set comes with it"
    return [
        _section(
            "groups",
            "Groups and pairs",
            "Nobody tells the program who is who, so it has to find out by itself which pictures "
            "belong together.",
            (panels.groups(run.epochs), "this run formed no groups."),
        ),
        _section(
            "truth",
            "Were the groups right?",
            f"Who is who is known because {whose}; never used in training.",
            (panels.truth(run.epochs), "the groups were not compared with the true people."),
        ),
    ]


def _section(anchor: str, title: str, text: str, *parts: tuple[list[Panel], str]) -> Section:
    """A section of some parts: their panels, and why a part without panels is missing."""
    shown = [panel for result, _ in parts for panel in result]
    return Section(anchor, title, text, shown, [why for result, why in parts if not result])


def _rank_groups(run: Run) -> list[ranklists.Group]:
    if _rank_missing(run):
        return []
    root = Path(run.root)
    return ranklists.groups(run.rankings["final"], run.rankings.get("start"), root=root)


def _rank_missing(run: Run) -> str:
    """Why there are no rank lists, "" where there are."""
    if not set(ranklists.NEEDED) <= set(run.rankings.get("final", {})):
        return "evaluation/final.npz is missing or holds no rank lists."
    if not run.root or not ("://" in run.root or Path(run.root).is_dir()):
        place = run.root or "a known place (data.root in config.yaml)"
        return f"The pictures are not at {place}."
    return ""


def _heat_maps(run: Run) -> tuple[list[heatmaps.Pair], str]:
    """Pairs with heat maps, and why there are none, "" where there are."""
    if _rank_missing(run):
        return [], "heat maps are made of the first rank lists, and there are none."
    if not any(run.directory.glob("*/state.pt")):
        return [], "heat maps need the trained encoder, and there is no checkpoint in this run."
    from pipelines.report import heatmaps

    try:
        return heatmaps.pairs(run.directory, run.data, run.rankings["final"]), ""
    except (UserError, ValueError, OSError, RuntimeError) as error:
        return [], f"heat maps could not be made: {error}"


def _whole_run(summary: Summary) -> dict[str, float]:
    """Seconds of the run's big steps under plain names, the total last."""
    seconds = summary.get("seconds") or {}
    order = [name for name in words.WHOLE_RUN if name in seconds]
    order[-1:-1] = [name for name in seconds if name not in words.WHOLE_RUN]
    return {words.WHOLE_RUN.get(name, name): seconds[name] for name in order}


def _listing(config: Mapping[str, Json]) -> dict[str, dict[str, str]]:
    """The configuration in groups: section -> dotted key -> value."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            groups[str(key)] = _flat(value)
        else:
            groups.setdefault("run", {})[str(key)] = _plain(value)
    return {name: group for name, group in groups.items() if group}


def _flat(section: Mapping[str, Json]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": one for name, one in _flat(value).items()}
        else:
            flat[str(key)] = _plain(value)
    return flat


def _plain(value: object) -> str:
    """A configuration value as one would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, list) else str(value)


def _versions(environment: Mapping[str, Json]) -> dict[str, str]:
    """Every plain entry that is neither the command nor the time."""
    return {
        name: str(value)
        for name, value in environment.items()
        if name not in ("command", "started") and not isinstance(value, Mapping)
    }
