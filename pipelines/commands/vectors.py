"""Commands that use an encoder: vectors of images, models for elsewhere; see `pipelines.cli`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.commands.options import Gpu, Space, Trial, ray_address
from pipelines.errors import UserError
from pipelines.runs.console import console, say

if TYPE_CHECKING:
    from pipelines.retrieval.embed import Embedded

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
    pool: Annotated[
        Literal["image", "tracklet"], typer.Option(help="A vector per image, or per tracklet.")
    ] = "image",
    dedup: Annotated[
        float | None, typer.Option(help="Of images with such a cosine keep one, 0.98.")
    ] = None,
    gpu: Gpu = None,
) -> None:
    """Turn images into vectors on all free GPUs or CPUs; again: only what is missing.

    On a cluster: as a Ray job, or with RAY_ADDRESS=auto in the environment.
    """
    from pipelines.retrieval import embed as embedding
    from pipelines.retrieval import pooling
    from pipelines.retrieval.sources import Source, modality_named

    if pool == "tracklet" and dedup is not None:
        raise UserError("--pool tracklet and --dedup: a tracklet is one vector already")
    images = Source(source, kind, split, modality_named(modality, "--modality"), trial)
    if pool == "tracklet":
        images = replace(images, by_folder=True)
    given = checkpoint, images
    options: dict[str, Any] = {
        "space": space,
        "dtype": dtype,
        "batch_size": batch_size,
        "max_unreadable": max_unreadable,
        "gpu": gpu,
        "ray_address": ray_address(),
    }
    if pool == "tracklet":
        done = pooling.embed_tracklets(*given, out, **options)
    elif dedup is not None:
        done, num_near = pooling.embed_distinct(*given, out, above=dedup, **options)
        say(f"{num_near:,} near-duplicates left out: {out / pooling.DUPLICATES}")
    else:
        done = embedding.embed(*given, out, **options)
    _say_done(done, out)


def _say_done(done: Embedded, out: Path) -> None:
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
    inputs: Annotated[
        Literal["bytes", "float"],
        typer.Option("--input", help="bytes, or float: normalized numbers, as trackers feed them."),
    ] = "bytes",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="fp32, fp16, or int8.")
    ] = "fp32",
    target: Annotated[
        str | None, typer.Option("--for", help="deepstream: with nvinfer's configuration.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder to check and calibrate on; default: the run's data.")
    ] = None,
) -> None:
    """Write the encoder for use without this package, checked against torch."""
    from pipelines.retrieval.export import export as write_models
    from pipelines.retrieval.model_file import Form

    form = Form(inputs, precision, target)
    models = write_models(
        checkpoint, out, file_format=file_format, space=space, form=form, images=images
    )
    for model in models:
        say(f"{model.path}: {model.modality}, {model.described()}")
