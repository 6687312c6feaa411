"""Commands that make, check and convert data sets: `crossreid data ...`; see `pipelines.cli`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import check_target, ray_address, write_text
from pipelines.errors import UserError
from pipelines.runs.console import console, say
from pipelines.storage.files import to_json

if TYPE_CHECKING:
    from pipelines.data.places import Trusted

data_app = typer.Typer(help="Generate and inspect data sets.", no_args_is_help=True)

ExtraRoot = Annotated[
    list[str] | None,
    typer.Option(help="Folder or bucket outside ROOT that rows may name; may be repeated."),
]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Rows may name images by http(s).")]


def _trusted(extra_root: list[str] | None, allow_http: bool) -> Trusted:
    from pipelines.data.places import Trusted

    if not all(name.strip() for name in extra_root or ()):
        raise UserError("--extra-root names nothing: give a folder or a bucket, or leave it out")
    return Trusted(tuple(map(Path, extra_root or ())), allow_http)


@data_app.command()
def synth(
    root: Annotated[Path, typer.Argument(help="Folder to write to.")],
    identities: Annotated[int, typer.Option(help="Identities; a tenth validate.")] = 430,
    seed: Annotated[int, typer.Option(help="Same seed, same files.", min=0, max=2**31 - 1)] = 0,
    layout: Annotated[str, typer.Option(help="sysu, regdb, llcm, cuhk, icfg or rstp.")] = "sysu",
    difficulty: Annotated[str, typer.Option(help="easy, default or hard.")] = "default",
    height: Annotated[int, typer.Option(help="Pixels; images are half as wide.")] = 96,
    test_share: Annotated[
        float, typer.Option(help="Share of the identities that is tested.")
    ] = 0.2,
    mismatch: Annotated[
        float, typer.Option(help="Share of the training identities that one modality alone saw.")
    ] = 0.0,
) -> None:
    """Draw identities as a data set in a real layout."""
    from pipelines.cluster.machine import cores
    from reid_core.datasets import synthetic

    synthetic.write(
        root,
        num_identities=identities,
        seed=seed,
        layout=layout,
        difficulty=difficulty,
        height=height,
        test_share=test_share,
        mismatch=mismatch,
        workers=cores(),
    )
    say(f"{identities} identities: {root}")


@data_app.command()
def roadscene(
    source: Annotated[Path, typer.Argument(help="A checkout of hanna-xu/RoadScene.")],
    root: Annotated[Path, typer.Argument(help="Folder to write to.")],
    seed: Annotated[int, typer.Option(help="Same seed, same files.", min=0, max=2**31 - 1)] = 0,
    difficulty: Annotated[str, typer.Option(help="easy, default or hard.")] = "default",
) -> None:
    """Places of real visible and thermal images as a data set in SYSU-MM01's layout."""
    from reid_core.datasets import roadscene as places

    counts = places.write(source, root, seed=seed, difficulty=difficulty)
    say(f"{', '.join(f'{count} {name}' for name, count in counts.items())} places: {root}")


@data_app.command()
def check(
    kind: Annotated[str, typer.Argument(help="Layout of the data set.")],
    root: Annotated[Path, typer.Argument(help="Its folder.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file.")
    ] = None,
    write_expected: Annotated[
        bool,
        typer.Option(help="First write what is counted now to ROOT/expected.json, for later."),
    ] = False,
    extra_root: ExtraRoot = None,
    allow_http: AllowHttp = False,
    near_duplicates: Annotated[
        Path | None, typer.Option(help="A run whose vectors find images that are nearly the same.")
    ] = None,
    above: Annotated[float, typer.Option(help="Cosine of near-duplicates.")] = 0.98,
) -> None:
    """Compare a data set with its published numbers, read every image; exit code 1 on a fault."""
    from pipelines.data import check

    check_target(json_file)
    trusted = _trusted(extra_root, allow_http)
    if write_expected:
        say(f"{check.write_expected(kind, root, trusted=trusted)}: later checks compare with it")
    result = check.check(kind, root, trusted=trusted)
    if near_duplicates is not None and result.counts:
        from pipelines.evaluation.alike import near_duplicates as find

        try:
            sets, note = find(near_duplicates, kind, root, above=above, trusted=trusted)
        except (UserError, ValueError) as error:
            if result.ok:
                raise
            sets, note = [], f"near-duplicates were not looked for: {error}"
        result = replace(result, notes=[*result.notes, note], near_duplicates=sets)
    console.print(check.render(result))
    if json_file is not None:
        write_text(json_file, to_json(result.to_json()))
    if not result.ok:
        raise typer.Exit(1)


@data_app.command()
def convert(
    kind: Annotated[str, typer.Argument(help="Layout of the data set.")],
    root: Annotated[Path, typer.Argument(help="Its folder.")],
    out: Annotated[str, typer.Argument(help="Folder or URI (s3://...) to write to.")],
    size: Annotated[
        str | None, typer.Option(help="HxW: resize once, kept as bitmaps. Default: same bytes.")
    ] = None,
    trial: Annotated[int, typer.Option(help="Which of RegDB's ten divisions.")] = 1,
    extra_root: ExtraRoot = None,
    allow_http: AllowHttp = False,
) -> None:
    """Pack a data set into Parquet shards; the same command again continues.

    On a cluster: as a Ray job, or with RAY_ADDRESS=auto in the environment.
    """
    from pipelines.data import convert as conversion

    result = conversion.convert(
        kind,
        root,
        out,
        size=size,
        trial=trial,
        trusted=_trusted(extra_root, allow_http),
        ray_address=ray_address(),
    )
    say(
        f"{result.num_images} images in {result.num_shards} shards, {result.num_written} of them "
        f"written now: {out}\ntrain on them with data.kind=manifest data.root={out}"
    )
