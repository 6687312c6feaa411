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
    """Write summary.json of a run that has trained; returns its content."""
    summary = summarize(config, prepared.kind, progress, seconds)
    runlog.write_summary(run_dir, summary)
    # The report shows the last epoch's rank lists under the name of the summary's last row.
    evaluation = run_dir / "evaluation"
    if prepared.measured is not None:
        last = (evaluation / f"{progress.stage}.npz").read_bytes()
        replace_file(evaluation / "final.npz", last)
    return summary


def summarize(
    config: RunConfig, kind: str, progress: Progress, seconds: dict[str, float]
) -> Summary:
    """The content of summary.json: last-epoch scores in percent, protocol, times, seed."""
    rows = dict(progress.scores)
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
