"""Commands that use an encoder: vectors of images, models for elsewhere; see `pipelines.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.commands.options import Space, Trial, ray_address
from pipelines.runs.console import console, say

commands = typer.Typer()


@commands.command()
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


@commands.command()
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
