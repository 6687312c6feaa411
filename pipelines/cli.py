"""The command line, and the only reader of arguments and environment."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.logging import RichHandler
from rich.markup import escape

from pipelines.cli_checkpoint import checkpoint_app
from pipelines.cli_data import check_target, data_app, ray_address, write_text
from pipelines.cli_gallery import commands, gallery_app
from pipelines.errors import Terminated, UserError, end_on_signals
from pipelines.runs.console import console, say
from pipelines.storage.files import to_json

app = typer.Typer(
    help="Person re-identification across cameras that see differently, without identity labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEBUG = "CROSSREID_DEBUG"
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(gallery_app, name="gallery")
app.registered_commands += commands.registered_commands

Out = Annotated[Path, typer.Option("--out", help="Run directory; made if it does not exist.")]
Space = Annotated[
    Literal["descriptor", "joint"],
    typer.Option(help="descriptor, or joint: CLIP's space, where sentences can be asked too."),
]
Trial = Annotated[
    int | None,
    typer.Option(help="Which of RegDB's ten divisions; default: that of the run.", min=1, max=10),
]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the identities and of the training.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="A smoke test: seconds, no scores.")] = False,
    method: Annotated[str, typer.Option(help="By name; an unknown one lists them.")] = "cclnet",
) -> None:
    """Draw identities, train all stages of a method on a local Ray cluster, evaluate, report."""
    from pipelines import demo as demonstration

    summary = demonstration.run(out, method=method, seed=seed, fast=fast, command=sys.argv)
    _show(summary, out)


@app.command()
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

    loaded = pipelines.load_config(config, [*_environment(), *(overrides or [])])
    if dry_run:
        from pipelines.data import gate

        say("\n".join(gate.describe(loaded, out)))
        return
    _show(pipelines.train(loaded, out=out), out)


@app.command(name="eval")
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
) -> None:
    """Measure a checkpoint under every protocol of a data set; features are extracted once."""
    from pipelines.evaluation.evaluate import calibration_lines, evaluate_checkpoint, score_table

    check_target(json_file)
    result = evaluate_checkpoint(
        checkpoint, kind=kind, root=root, trial=trial, split=split, flip=flip, reranked=rerank
    )
    console.print(score_table(result))
    for line in calibration_lines(result):
        say(line)
    if json_file is not None:
        write_text(json_file, to_json(result.table))
        say(f"scores: {json_file}")


@app.command()
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


@app.command()
def tune(
    search: Annotated[Path, typer.Argument(help="A search file, or the name of one that ships.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="For the recipe, such as data.root=/data/SYSU-MM01.")
    ] = None,
    out: Out = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is left.")] = False,
) -> None:
    """Search for the settings that do best on validation identities."""
    from pipelines.sweep import ledger, search_space
    from pipelines.sweep.tuner import search_for_best

    study = search_space.load(search, [*_environment(), *(overrides or [])])
    found, best = search_for_best(study, out, sys.argv, resume=resume)
    console.print(ledger.table(found, study.search.objective))
    say(f"best:   {best.name}, recipe {out / ledger.BEST}")
    say(f"report: {out / 'report.html'}")


@app.command()
def embed(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
    source: Annotated[
        Path, typer.Argument(help="Folder of images, manifest (.csv, .jsonl, .parquet), data set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
    kind: Annotated[str | None, typer.Option(help="Layout, where SOURCE is a data set.")] = None,
    trial: Trial = None,
    split: Annotated[str, typer.Option(help="Of a data set: train, val, test or all.")] = "test",
    modality: Annotated[
        str | None, typer.Option(help="Modality of all images, where no folder or column says it.")
    ] = None,
    space: Space = "descriptor",
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Number format of the vectors.")
    ] = "float16",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 64,
    max_unreadable: Annotated[
        float, typer.Option(help="Share of the images that may be left out.", min=0, max=1)
    ] = 0.01,
) -> None:
    """Turn images into vectors on all GPUs or CPUs; again: only what is missing.

    On a cluster: as a Ray job, or with RAY_ADDRESS=auto in the environment.
    """
    from pipelines.retrieval import embed as embedding
    from pipelines.retrieval.sources import Source, modality_named

    done = embedding.embed(
        checkpoint,
        Source(source, kind, split, modality_named(modality, "--modality"), trial),
        out,
        space=space,
        dtype=dtype,
        batch_size=batch_size,
        max_unreadable=max_unreadable,
        ray_address=ray_address(),
    )
    for message in done.unreadable[:10]:
        console.print(f"left out: {message}", style="yellow", markup=False)
    say(
        f"{done.num_vectors:,} vectors, {done.num_new:,} of them new in {done.seconds:.0f} s, "
        f"{len(done.unreadable)} images left out: {out}"
    )


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
    out: Annotated[Path, typer.Argument(help="Folder for one model per modality.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    space: Space = "descriptor",
) -> None:
    """Write the encoder for use without this package, checked against torch."""
    from pipelines.retrieval.export import export as write_models

    for model in write_models(checkpoint, out, file_format=file_format, space=space):
        say(f"{model.path}: {model.modality}, largest difference to torch {model.difference:.1e}")


@app.command()
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

    found = runlog.first_difference(one, other)
    if found is None:
        return "no image is labelled differently in any epoch of both"
    stage, epoch = found
    return f"the first epoch in which an image is labelled differently: {stage} {epoch + 1}"


@app.command()
def doctor(
    out: Annotated[Path, typer.Option("--out", help="Where runs are to be written.")] = Path(
        "runs"
    ),
    address: Annotated[
        str | None, typer.Option(help="Cluster to examine, such as auto; default: a local one.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the findings to this file.")
    ] = None,
) -> None:
    """Check whether a run will work here and on the cluster; exit code 1 if it will not."""
    from pipelines.cluster import doctor as clinic

    check_target(json_file)
    findings = []
    for finding in clinic.examine(out, address or ray_address()):
        findings.append(finding)
        console.print(clinic.table([finding]))
    if json_file is not None:
        write_text(json_file, clinic.to_json(findings))
    if clinic.failed(findings):
        raise typer.Exit(1)


def _environment() -> list[str]:
    return [f"ray.address={address}"] if (address := ray_address()) else []


def _show(summary: dict, out: Path) -> None:
    from pipelines.report.terminal import summary_table

    console.print(summary_table(summary))
    say(f"report:  {out / 'report.html'}\nsummary: {out / 'summary.json'}")


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error of ours.")
    ] = False,
) -> None:
    """Runs before every command."""
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Entry point, and the exit codes: 2 the user's mistake, 1 ours, 130 Ctrl-C, 143 SIGTERM."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    end_on_signals()
    try:
        app()
    except (UserError, ValueError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        raise SystemExit(2) from error
    except Terminated as error:
        say("ended by a signal: what is finished is kept; the same command goes on from there")
        raise SystemExit(128 + error.number) from error
    except Exception as error:
        if _DEBUG in os.environ:
            raise
        _our_fault(error)
        raise SystemExit(1) from error


def _our_fault(error: Exception) -> None:
    """An error that should not have come through: one line here, the rest in a file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="crossreid-", suffix=".txt", delete=False
    ) as report:
        report.write("".join(traceback.format_exception(error)))
    console.print(f"[bold red]internal error:[/] {escape(f'{type(error).__name__}: {error}')}")
    say(
        f"this is a fault of crossreid, not yours; the traceback is in {report.name}\n"
        "please report it with the output of `crossreid doctor`; --debug shows it here"
    )


if __name__ == "__main__":
    main()
