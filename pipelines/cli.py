"""The command line, and the only reader of arguments and environment."""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from typing import Annotated, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape

from pipelines.commands import (
    checkpoint,
    data,
    demo,
    doctor,
    gallery,
    results,
    search,
    training,
    vectors,
)
from pipelines.errors import RunFailedError, Terminated, end_on_signals, for_users
from pipelines.runs.console import console, say

app = typer.Typer(
    help="Person re-identification across cameras that see differently, without identity labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEBUG = "CROSSREID_DEBUG"
app.add_typer(data.data_app, name="data")
app.add_typer(checkpoint.checkpoint_app, name="checkpoint")
app.add_typer(gallery.gallery_app, name="gallery")
for part in (demo, training, results, vectors, search, doctor):
    app.registered_commands += part.commands.registered_commands


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
    except RunFailedError as error:
        _refuse(str(error), 1, error)
    except Terminated as error:
        say(error.said)
        raise SystemExit(128 + error.number) from error
    except BrokenPipeError as error:  # whoever read our lines has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from error
    except Exception as error:
        if said := for_users(error):
            _refuse(said, 2, error)
        if _DEBUG in os.environ:
            raise
        _our_fault(error)
        raise SystemExit(1) from error


def _refuse(said: str, code: int, error: Exception) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(said)}")
    raise SystemExit(code) from error


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
