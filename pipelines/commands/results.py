"""Commands about what was trained: its scores, its report, runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.commands.options import Trial, check_target, write_text
from pipelines.errors import UserError
from pipelines.runs.console import console, say
from pipelines.storage.files import to_json

commands = typer.Typer()


@commands.command(name="eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
    kind: Annotated[
        str | None, typer.Option(help="Layout of the data set; default: that of the run.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Its folder; default: that of the run.")] = None,
    trial: Trial = None,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the scores to this file.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Also with mirrored images, on lines of their own.")
    ] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Also re-ranked, on lines of their own.")
    ] = False,
    pool: Annotated[
        Literal["image", "tracklet"], typer.Option(help="Rank images, or tracklets.")
    ] = "image",
) -> None:
    """Measure a checkpoint under every protocol of a data set; features are extracted once."""
    from pipelines.evaluation.checkpoint import evaluate_checkpoint
    from pipelines.evaluation.evaluate import calibration_lines, score_table

    check_target(json_file)
    result = evaluate_checkpoint(
        checkpoint,
        kind=kind,
        root=root,
        trial=trial,
        split=split,
        flip=flip,
        reranked=rerank,
        tracklets=pool == "tracklet",
    )
    console.print(score_table(result))
    for line in calibration_lines(result):
        say(line)
    if json_file is not None:
        write_text(json_file, to_json(result.table))
        say(f"scores: {json_file}")


@commands.command()
def report(
    run_dir: Annotated[
        Path, typer.Argument(help="A run directory, or the folder of a sweep or of trials.")
    ],
) -> None:
    """Write the report of a run, a sweep or trials again, from its files."""
    from pipelines.evaluation import regdb_trials
    from pipelines.report import page, trials_page
    from pipelines.sweep import page as sweep_page

    module = sweep_page if sweep_page.is_sweep(run_dir) else page
    if regdb_trials.is_folder(run_dir):
        module = trials_page
    say(f"report: {module.write(run_dir)}")


@commands.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, two or more.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
) -> None:
    """Runs side by side: mean and standard deviation over seeds."""
    from pipelines.report import comparison as comparing

    groups = comparing.read(runs)
    console.print(comparing.table(groups))
    say(f"comparison: {comparing.write(groups, out)}")
    if len(runs) == 2:
        say(_labels_apart(*runs))


def _labels_apart(one: Path, other: Path) -> str:
    from pipelines.runs import runlog

    try:
        result = runlog.first_difference(one, other)
    except UserError as error:
        return str(error)
    if result is None:
        return "no image is labeled differently in any epoch of both"
    stage, epoch = result
    return f"the first epoch in which an image is labeled differently: {stage} {epoch + 1}"
