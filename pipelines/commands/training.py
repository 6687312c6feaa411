"""Commands that train: a run, a sweep; see `pipelines.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Out, of_environment
from pipelines.runs.console import console, say

if TYPE_CHECKING:
    from pipelines.runs.records import Summary

commands = typer.Typer()


@commands.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, or the name of a recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as data.root=/data/SYSU-MM01 seed=1.")
    ] = None,
    out: Out = Path("runs/latest"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that can be, and train nothing.")
    ] = False,
) -> None:
    """Train a method; the same command again continues an interrupted run."""
    import pipelines
    from pipelines.data import roots

    loaded = pipelines.load_config(config, [*of_environment(), *(overrides or [])])
    roots.require_folder(loaded.data.root)
    if dry_run:
        from pipelines.data import gate
        from pipelines.evaluation import regdb_trials

        every = loaded.data.trial == "all"
        runs = regdb_trials.runs(loaded, out) if every else {out: loaded}
        say("\n".join(gate.describe(runs)))
        return
    show(pipelines.train(loaded, out=out), out)


@commands.command()
def tune(
    search: Annotated[Path, typer.Argument(help="A search file, or the name of one that ships.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="For the recipe, such as data.root=/data/SYSU-MM01.")
    ] = None,
    out: Out = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is left.")] = False,
) -> None:
    """Search for the settings that do best on validation identities.

    Exit code 1 if a trial failed; what the others found is written all the same.
    """
    from pipelines.errors import RunFailedError
    from pipelines.sweep import ledger, search_space
    from pipelines.sweep.tuner import search_for_best

    study = search_space.load(search, [*of_environment(), *(overrides or [])])
    result, best = search_for_best(study, out, sys.argv, resume=resume)
    console.print(ledger.table(result, study.search.objective))
    say(f"best:   {best.name}, recipe {out / ledger.BEST}")
    say(f"report: {out / 'report.html'}")
    if errors := [trial.error for trial in result if trial.status == "failed"]:
        raise RunFailedError(
            f"{len(errors)} of {len(result)} trials failed: {errors[0]}; {out / ledger.TRIALS} has "
            "every trial's error; the same command with --resume tries them again"
        )


def show(summary: Summary, out: Path) -> None:
    """What a run ended with, and where it is."""
    from pipelines.report.scores import why_none
    from pipelines.report.terminal import summary_table

    if why := why_none(summary):
        say(why)
    else:
        console.print(summary_table(summary))
    say(f"report:  {out / 'report.html'}\nsummary: {out / 'summary.json'}")
