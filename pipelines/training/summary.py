"""What a finished run says of itself: summary.json."""

from __future__ import annotations

from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.data.prepare import Prepared
from pipelines.runs import runlog
from pipelines.runs.records import Summary
from pipelines.storage.files import replace_file
from pipelines.training.progress import Progress
from reid_core.datasets import LAYOUTS


def finish(
    run_dir: Path,
    config: RunConfig,
    prepared: Prepared,
    progress: Progress,
    seconds: dict[str, float],
) -> Summary:
    """Write summary.json of a run that has trained, last of all; returns its content."""
    assert progress.stage, "a run that has trained stands in a stage"
    # The report shows the last epoch's rank lists under the name of the summary's last row.
    last = run_dir / "evaluation" / f"{progress.stage}.npz"
    if prepared.measured is not None and last.exists():
        replace_file(last.with_name("final.npz"), last.read_bytes())
    # a run that was interrupted was trained by several commands, of which this is the last
    lines = runlog.read_metrics(run_dir)
    epochs = sum(sum((line.get("seconds") or {}).values()) for line in lines)
    seconds = seconds | {"train": max(seconds.get("train", 0.0), epochs)}
    summary = summarize(config, prepared.kind, progress, seconds)
    runlog.write_summary(run_dir, summary)
    return summary


def summarize(
    config: RunConfig, kind: str, progress: Progress, seconds: dict[str, float]
) -> Summary:
    """The content of summary.json: last-epoch scores in percent, protocol, times, seed."""
    rows = dict(progress.scores)
    if config.evaluation.select is None:
        rows.pop("selected", None)  # of the run whose stage this one started from
    if progress.stage in rows:
        rows["final"] = rows[progress.stage]
    protocol = LAYOUTS[kind].headline_words
    if config.evaluation.split == "val":
        protocol += " (validation identities)"
    return {
        "rows": rows,
        "protocol": protocol,
        "chance": {"rank1": progress.chance},
        "seconds": {**seconds, "total": sum(seconds.values())},
        "seed": config.seed,
        "evaluation": progress.table,
    }
