"""The commands under `crossreid checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.runs.console import console, say

checkpoint_app = typer.Typer(
    help="Look into checkpoints, and make them of others' weights.", no_args_is_help=True
)


@checkpoint_app.command(name="hash")
def hash_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
) -> None:
    """Print the content hash: equal for equal weights, optimizer state, banks, labels, scores."""
    from pipelines.runs import checkpoint as files

    console.print(files.content_hash(files.load(files.find(checkpoint))))


@checkpoint_app.command(name="import")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Weights that others have published.")],
    out: Annotated[Path, typer.Argument(help="Folder that eval, embed and export will take.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as data.kind=sysu data.root=/data/SYSU-MM01.")
    ] = None,
    publisher: Annotated[
        str,
        typer.Option("--from", help="A method's name, transreid-ssl, solider or clip-reid."),
    ] = "",
) -> None:
    """Make a run folder of released weights; what they were trained with is set and stays set."""
    from pipelines.runs.released import import_released

    say(f"imported: {import_released(file, out, publisher, overrides or [])}")
