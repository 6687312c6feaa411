"""The commands under `crossreid gallery`: what fills and changes one, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.commands.options import Gpu, ray_address
from pipelines.errors import UserError
from pipelines.runs.console import say

if TYPE_CHECKING:
    from pipelines.retrieval.gallery import Gallery as Table
    from pipelines.retrieval.gallery_rows import Filter

gallery_app = typer.Typer(help="Fill, change and look into galleries.", no_args_is_help=True)

Gallery = Annotated[str, typer.Argument(metavar="GALLERY", help="A folder, or a URI (s3://...).")]
Checkpoint = Annotated[Path | None, typer.Option(help="Where the encoder lies, if it was moved.")]
SeenAs = Annotated[
    str | None, typer.Option("--as", help="Modality of the images: visible or infrared.")
]
Space = Annotated[
    Literal["descriptor", "joint"] | None,
    typer.Option(help="Vectors to search, where the gallery has both: descriptor or joint."),
]


@gallery_app.command(name="add")
def add(
    gallery: Gallery,
    run: Annotated[Path, typer.Argument(help="A checkpoint or run; or a folder of `embed`.")],
    source: Annotated[
        Path | None, typer.Argument(help="Folder of images, manifest or data set to embed.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Layout, where SOURCE is a data set.")] = None,
    split: Annotated[str, typer.Option(help="Of a data set: train, val, test or all.")] = "test",
    modality: Annotated[
        str | None, typer.Option(help="Modality of all images, where no folder or column says it.")
    ] = None,
    space: Annotated[
        Literal["descriptor", "joint"],
        typer.Option(help="descriptor, or joint: CLIP's space, where sentences can be asked too."),
    ] = "descriptor",
    new_encoder: Annotated[
        bool, typer.Option("--new-encoder", help="Keep a table beside that of another encoder.")
    ] = False,
    recall: Annotated[
        float | None,
        typer.Option(
            help="Recall at ten answers that is tuned to, also later; 0.95 where none was said.",
            min=0.1,
            max=1,
        ),
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option(help="Share of the images that may be left out.", min=0, max=1)
    ] = 0.01,
    gpu: Gpu = None,
) -> None:
    """Add images that are new or changed, or the vectors that `embed` wrote."""
    from pipelines.retrieval import fill
    from pipelines.retrieval.sources import Source, modality_named

    if source is None:
        added = fill.add_vectors(gallery, run, new_encoder=new_encoder, recall=recall)
    else:
        added = fill.add_images(
            gallery,
            run,
            Source(source, kind, split, modality_named(modality, "--modality"), times=True),
            space=space,
            new_encoder=new_encoder,
            recall=recall,
            max_unreadable=max_unreadable,
            gpu=gpu,
            ray_address=ray_address(),
        )
    say(f"{added.new:,} new, {added.replaced:,} replaced, {added.total:,} in all: {gallery}")


@gallery_app.command(name="remove")
def remove(
    gallery: Gallery,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids to take away.")] = None,
    name: Annotated[str | None, typer.Option(help="Of an identity on the watch list.")] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            help="Rows of the identity that `search` shows by this number; of one --root where "
            "several have it.",
            min=0,
        ),
    ] = None,
    camera: Annotated[int | None, typer.Option(help="Rows of this camera.", min=0)] = None,
    since: Annotated[str | None, typer.Option(help="Rows from this time on.")] = None,
    until: Annotated[str | None, typer.Option(help="Rows up to this time.")] = None,
    root: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Rows that were added from this folder.")
    ] = None,
    space: Space = None,
) -> None:
    """Take rows away, of all tables: those of some ids, or those that are all that the options say.

    Older versions keep them until `gallery tidy`.
    """
    from pipelines.retrieval.gallery_rows import Filter, spellings, time_of

    where = Filter(
        names=() if name is None else (name,),
        pids=() if pid is None else (pid,),
        cameras=() if camera is None else (camera,),
        since=time_of(since, "--since"),
        until=time_of(until, "--until"),
        roots=() if root is None else (root,),
    )
    if bool(ids) == bool(where.sql()) or "" in (*(ids or ()), root):
        raise UserError(
            "say what to remove: ids, or one or more of --name, --pid, --camera, --since, --until, "
            "--root"
        )
    opened = _all_tables(gallery, space)
    if root is not None:
        where = replace(where, roots=(_as_stored(root, opened),))
    if name is not None:
        stored = {known for one in opened for known in one.names()}
        where = replace(where, names=tuple(spellings(name, stored)))
    if pid is not None and root is None:
        _require_one_root(opened, where)
    removed = sum(one.remove(ids=ids or (), where=None if ids else where) for one in opened)
    if not removed:
        raise UserError(
            f"{gallery} holds no row {', '.join(ids[:3]) if ids else f'that is {where}'}: "
            "`crossreid gallery info` shows what there is"
        )
    say(f"{removed:,} removed, {sum(map(len, opened)):,} left: {gallery}")


def _require_one_root(opened: Sequence[Table], where: Filter) -> None:
    """Refuse a number that several sources may have given to different identities."""
    batches = (batch for one in opened for batch in one.scan(["root"], where))
    places = sorted({root for batch in batches for root in batch["root"].to_pylist()})
    if len(places) > 1:
        raise UserError(
            f"rows that are {where} were added from {' and '.join(places)}, whose numbers may mean "
            "different identities: nothing was removed. Say --root, once for each that is meant"
        )


def _as_stored(root: str, opened: Sequence[Table]) -> str:
    """A folder as rows name it; where it is a link now, that place is another one."""
    from pipelines.retrieval.gallery_rows import Filter

    spellings = root, os.path.abspath(root), str(Path(root).resolve())
    known = (x for x in spellings if any(one.count(Filter(roots=(x,))) for one in opened))
    return next(known, root)


@gallery_app.command(name="enroll")
def enroll(
    gallery: Gallery,
    name: Annotated[str, typer.Argument(help="Of the identity.")],
    images: Annotated[list[Path], typer.Argument(help="One image or more.")],
    seen_as: SeenAs = None,
    checkpoint: Checkpoint = None,
    space: Space = None,
) -> None:
    """Put an identity on the watch list; with --checkpoint also of a gallery that is new."""
    from pipelines.retrieval import fill, search
    from pipelines.retrieval.gallery import Gallery
    from pipelines.retrieval.gallery_rows import spellings
    from pipelines.retrieval.sources import modality_named

    if checkpoint is not None and "://" not in gallery and not Path(gallery).exists():
        fill.made_for(gallery, checkpoint, space=space or "descriptor")
    opened = Gallery.open(gallery, space=space)
    loaded = search.encoder_of(opened, checkpoint)
    modality = search.image_modality(loaded, modality_named(seen_as, "--as"))
    fill.enroll(opened, loaded, name, images, modality)
    known = opened.names()
    count = known[spellings(name, known)[0]]
    say(f"{name}: {count} image{'s' * (count != 1)} on the watch list")


@gallery_app.command(name="info")
def info(gallery: Gallery) -> None:
    """Tables, rows, watch list, versions."""
    from pipelines.retrieval.gallery import Gallery, tables

    for facts in tables(gallery):
        opened = Gallery.open(gallery, space=facts.space, fingerprint=facts.fingerprint)
        versions = opened.versions()
        how = opened.tuning
        say(
            f"{facts.table}: {len(opened):,} vectors of {facts.dim} numbers, {opened.described()}\n"
            f"  encoder {facts.checkpoint}\n"
            f"  ids such as {', '.join(opened.some_ids()) or 'none'}\n"
            f"  search: {how.described()}\n  watch list: {', '.join(opened.names()) or 'nobody'}\n"
            f"  versions {versions[0][0]} ({versions[0][1]:%Y-%m-%d %H:%M}) to {versions[-1][0]} "
            f"({versions[-1][1]:%Y-%m-%d %H:%M})"
        )


@gallery_app.command(name="tidy")
def tidy(
    gallery: Gallery,
    keep_days: Annotated[
        float, typer.Option(help="Versions that are kept.", min=0, max=36_500)
    ] = 30,
    space: Space = None,
) -> None:
    """Join small files, index what grew, drop old versions and what nothing needs any more.

    That is what interrupted additions left, and uploaded images that no version has a row of.
    """
    from datetime import timedelta

    from pipelines.retrieval import uploads
    from pipelines.retrieval.additions import remove_abandoned_additions

    for one in _all_tables(gallery, space):
        one.optimize(keep_for=timedelta(days=keep_days))
    for folder in remove_abandoned_additions(gallery):
        say(f"removed {folder}, which an interrupted `gallery add` left")
    if removed := uploads.remove_forgotten(gallery):
        say(f"removed {removed:,} uploaded images that no version has a row of")
    say(f"tidied: {gallery}")


def _all_tables(gallery: str, space: str | None) -> list[Table]:
    """The tables of a gallery, or those of one space."""
    from pipelines.retrieval import gallery as galleries

    each = [one for one in galleries.tables(gallery) if space in (None, one.space)]
    if not each:
        raise UserError(f"{gallery} holds no vectors {space or ''}".rstrip())
    return [
        galleries.Gallery.open(gallery, space=one.space, fingerprint=one.fingerprint)
        for one in each
    ]
