"""The command line, and the only reader of arguments and environment."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from pipelines.errors import UserError
from pipelines.progress import console

app = typer.Typer(
    help="Person re-identification across cameras that see differently, without identity labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Generate and inspect data sets.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Look into checkpoints.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")

Out = Annotated[Path, typer.Option("--out", help="Run directory; made if it does not exist.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the people and of the training.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="A smoke test: seconds, no scores.")] = False,
) -> None:
    """Draw people, train CCLNet's three stages on a local Ray cluster, evaluate, report."""
    from pipelines import demo as demonstration

    summary = demonstration.run(out, seed=seed, fast=fast, command=sys.argv)
    _show(summary, out)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, or the name of a recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as data.root=/data/SYSU-MM01 seed=1.")
    ] = None,
    out: Out = Path("runs/latest"),
) -> None:
    """Train a method; the same command again continues an interrupted run."""
    from pipelines import config as configuration
    from pipelines.report import page
    from pipelines.train import train as train_on_ray

    loaded = configuration.load(config, [*_environment(), *(overrides or [])])
    summary = train_on_ray(loaded, out, sys.argv)
    page.write(out)
    _show(summary, out)


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
    kind: Annotated[str, typer.Option(help="Layout of the data set.")] = "sysu",
    root: Annotated[Path | None, typer.Option(help="Its folder; default: that of the run.")] = None,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the scores to this file.")
    ] = None,
) -> None:
    """Measure a checkpoint under every protocol of a data set; features are extracted once."""
    from pipelines.evaluate import evaluate_checkpoint, score_table

    result = evaluate_checkpoint(checkpoint, kind=kind, root=root, split=split)
    console.print(score_table(result))
    if json_file is not None:
        _write(json_file, json.dumps(result.table, indent=1) + "\n")
        console.print(f"scores: {json_file}")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write the report of a run again, from its files."""
    from pipelines.report import page

    console.print(f"report: {page.write(run_dir)}")


@app.command()
def tune(
    search: Annotated[Path, typer.Argument(help="A search file, or the name of one that ships.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="For the recipe, such as data.root=/data/SYSU-MM01.")
    ] = None,
    out: Out = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is left.")] = False,
) -> None:
    """Search for the settings that do best on validation people."""
    from pipelines import sweep, trials
    from pipelines.tune import search_for_best

    study = sweep.load(search, [*_environment(), *(overrides or [])])
    found, best = search_for_best(study, out, sys.argv, resume=resume)
    console.print(trials.table(found, study.search.objective))
    console.print(f"best: {best.name}, recipe: {out / trials.BEST}")


@data_app.command()
def synth(
    root: Annotated[Path, typer.Argument(help="Folder to write to.")],
    identities: Annotated[int, typer.Option(help="People, split 70/10/20.")] = 430,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    layout: Annotated[str, typer.Option(help="Layout to write.")] = "sysu",
    difficulty: Annotated[str, typer.Option(help="easy, default or hard.")] = "default",
) -> None:
    """Draw people as a data set in a real layout."""
    from reid_core.datasets import synthetic

    synthetic.write(
        root,
        num_identities=identities,
        seed=seed,
        layout=layout,
        difficulty=difficulty,
        workers=os.cpu_count() or 1,
    )
    console.print(f"{identities} people: {root}")


@checkpoint_app.command(name="hash")
def hash_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
) -> None:
    """Print the content hash: equal for equal weights, optimiser, banks, labels, random states."""
    from pipelines import checkpoint as files

    console.print(files.content_hash(files.load(files.find(checkpoint))))


def _environment() -> list[str]:
    """Inside a Ray job the cluster is the one that the job runs on."""
    return ["ray.address=auto"] if "RAY_ADDRESS" in os.environ else []


def _show(summary: dict, out: Path) -> None:
    from pipelines.report.terminal import summary_table

    console.print(summary_table(summary))
    console.print(f"report:  {out / 'report.html'}\nsummary: {out / 'summary.json'}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def main() -> None:
    """Entry point: mistakes of the user end with exit code 2 and no traceback."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)]
    )
    try:
        app()
    except (UserError, ValueError) as error:
        console.print(f"[bold red]error:[/] {error}", markup=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
