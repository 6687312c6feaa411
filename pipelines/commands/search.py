"""Commands that ask a gallery: search, watch, serve, and how likely an answer is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.gallery import Checkpoint, Gallery, SeenAs, Space
from pipelines.commands.options import Gpu, ray_address
from pipelines.errors import UserError, said_at_the_end
from pipelines.runs.console import console, say

if TYPE_CHECKING:
    from pipelines.retrieval.search import Hit, Query

commands = typer.Typer()

Modality = Annotated[str | None, typer.Option(help="Answers of this modality only.")]
Camera = Annotated[
    list[int] | None, typer.Option(help="Answers of this camera only; may be repeated.", min=0)
]
Since = Annotated[str | None, typer.Option(help="Answers from this time on, 2026-11-27T14:05.")]
Until = Annotated[str | None, typer.Option(help="Answers up to this time.")]
Pid = Annotated[
    int,
    typer.Option(
        help="Identity on the image, as the column identity numbers it: marks right answers.",
        min=-1,
    ),
]
MinProbability = Annotated[
    float, typer.Option(help="Leave out what is less likely one identity.", min=0, max=1)
]
Answers = Annotated[
    Path | None, typer.Option(help="Contact sheet (.html, .png), or answers (.json, .csv).")
]
Prior = Annotated[
    float | None,
    typer.Option(
        help="Share of rows that show the queried identity; default: that of the fit.",
        min=0,
        max=1,
    ),
]


@commands.command()
def search(
    gallery: Gallery,
    query: Annotated[str | None, typer.Argument(help="Image file, or an id.")] = None,
    text: Annotated[str | None, typer.Option(help="Search by a sentence instead.")] = None,
    seen_as: SeenAs = None,
    pid: Pid = -1,
    top: Annotated[int, typer.Option(help="Number of answers.")] = 10,
    modality: Modality = None,
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
    min_probability: MinProbability = 0.0,
    prior: Prior = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Re-rank by shared neighbors.")] = False,
    version: Annotated[int | None, typer.Option(help="Search an older state.")] = None,
    space: Space = None,
    checkpoint: Checkpoint = None,
    out: Answers = None,
) -> None:
    """Find the nearest rows to an image, a sentence or a row of a gallery."""
    from pipelines.retrieval import answer_table
    from pipelines.retrieval import search as searching
    from pipelines.retrieval.gallery import Gallery, tables
    from pipelines.retrieval.gallery_rows import Filter, time_of
    from pipelines.retrieval.sources import modality_named

    _check(out)
    if text is not None and any(facts.space == "joint" for facts in tables(gallery)):
        space = space or "joint"
    opened = Gallery.open(gallery, space=space, version=version)
    where = Filter(
        modality=modality_named(modality, "--modality"),
        cameras=tuple(camera or ()),
        since=time_of(since, "--since"),
        until=time_of(until, "--until"),
    )
    asked = searching.ask(
        opened,
        image=query,
        text=text,
        seen_as=modality_named(seen_as, "--as"),
        pid=pid,
        checkpoint=checkpoint,
    )
    known = searching.probabilities_of(opened, checkpoint, prior)
    hits = searching.search(
        opened,
        asked,
        top=top,
        where=where,
        reranked=rerank,
        calibrated=known,
        min_probability=min_probability,
    )
    console.print(answer_table.table(asked, hits))
    if known is not None:
        say(known.described())
    if out is not None:
        _write(out, asked, hits, answer_table.described(opened, where=where, reranked=rerank))


def _check(out: Path | None) -> None:
    """Refuse what no answers can be written to, before there are any."""
    from pipelines.retrieval import answer_file, contact_sheet

    if out is not None:
        (answer_file if out.suffix in answer_file.SUFFIXES else contact_sheet).check(out)


def _write(out: Path, asked: Query, hits: list[Hit], note: str) -> None:
    from pipelines.retrieval import answer_file, contact_sheet

    if out.suffix in answer_file.SUFFIXES:
        say(f"answers: {answer_file.write(out, asked, hits)}")
    else:
        say(f"contact sheet: {contact_sheet.write(out, asked, hits, note=note)}")


@commands.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="A checkpoint folder or a run directory.")],
    labels: Annotated[
        str, typer.Option(help="val: validation identities; pseudo; auto: what there is.")
    ] = "auto",
) -> None:
    """Fit how likely two images of some cosine show one identity; kept beside the checkpoint."""
    from pipelines.evaluation.calibrate import calibrate as fit

    fitted = fit(run, labels=labels)
    for name, one in fitted.maps.items():
        say(
            f"{name}: {one.kind}, calibration error {fitted.error[name]:.3f} on the "
            f"{fitted.source} it was fitted on, {one.prior:.2%} of whose pairs are of one identity"
        )
    say(fitted.described())
    say("`crossreid report` draws it, `crossreid eval` measures it on other identities")


@commands.command()
def watch(
    gallery: Gallery,
    source: Annotated[Path, typer.Argument(help="A folder that images arrive in.")],
    seen_as: SeenAs = None,
    min_probability: Annotated[float, typer.Option(help="Of a match.", min=0, max=1)] = 0.9,
    prior: Annotated[
        float | None,
        typer.Option(
            help="Share of arriving images that show an enrolled identity, whichever; default: "
            "for each of them that of the fit.",
            min=0,
            max=1,
        ),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.05)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    checkpoint: Checkpoint = None,
    space: Space = None,
) -> None:
    """Print who of the watch list is on images as they arrive, as JSON lines."""
    from pipelines.retrieval import search
    from pipelines.retrieval import watch as watching
    from pipelines.retrieval.gallery import Gallery
    from pipelines.retrieval.sources import modality_named

    opened = Gallery.open(gallery, space=space)
    loaded = search.encoder_of(opened, checkpoint)
    lines = watching.watch(
        opened,
        loaded,
        source,
        modality=modality_named(seen_as, "--as"),
        calibrated=search.probabilities_of(opened, checkpoint, prior),
        min_probability=min_probability,
        every_s=every,
        rounds=2 if once else None,
    )
    with said_at_the_end("the watch has ended"):
        for line in lines:
            typer.echo(line)


@commands.command()
def serve(
    gallery: Gallery,
    checkpoint: Checkpoint = None,
    space: Space = None,
    host: Annotated[str, typer.Option(help="Beyond this machine: set CROSSREID_TOKEN.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="To listen on.", min=1, max=65535)] = 8000,
    read_only: Annotated[bool, typer.Option("--read-only", help="Take no images.")] = False,
    prior: Prior = None,
    replicas: Annotated[int, typer.Option(help="Encoders at least, one per GPU.", min=1)] = 1,
    max_replicas: Annotated[
        int, typer.Option(help="Encoders at most, while requests queue.", min=1)
    ] = 1,
    max_batch: Annotated[int, typer.Option(help="Queries per forward pass.", min=1)] = 32,
    gpu: Gpu = None,
) -> None:
    """Serve a gallery over HTTP, with a page to search it in; Ctrl-C ends it."""
    from pipelines.service import deploy
    from pipelines.service.plan import Settings

    if "://" in gallery and not read_only:
        raise UserError(f"{gallery} is no folder that images could be kept in: say --read-only")
    settings = Settings(
        gallery if "://" in gallery else str(Path(gallery).resolve()),
        space=space,
        checkpoint=checkpoint.resolve() if checkpoint else None,
        prior=prior,
        host=host,
        port=port,
        token=os.environ.get("CROSSREID_TOKEN", ""),
        uploads=None if read_only else Path(gallery).resolve(),
        min_replicas=replicas,
        max_replicas=max_replicas,
        gpu=gpu,
        max_batch=max_batch,
    )
    with (
        said_at_the_end(f"{gallery} is served no more"),
        deploy.running(settings, ray_address=ray_address()),
    ):
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {gallery} at http://{shown}:{port}/ (Ctrl-C ends it)")
        deploy.wait()
