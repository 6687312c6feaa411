"""A contact sheet: the query and its answers as one image, or as one page that needs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipelines.errors import UserError
from pipelines.report.ranklists import thumbnail
from pipelines.report.style import INK, MUTED, RIGHT, WRONG
from pipelines.report.templates import render
from pipelines.retrieval.search import Hit, Query
from pipelines.storage.files import replace_file
from pipelines.storage.shards import read_bytes
from reid_core.images import open_rgb

_TILE = (112, 224)  # width and height of an image; identities are upright
_MARGIN, _TEXT, _FRAME = 12, 40, 4
_COLUMNS = 11
_PALE = "#e3e6ec"


@dataclass(frozen=True)
class _Tile:
    """One image of the page, as a data URI, None where it cannot be read."""

    image: str | None
    path: str
    hit: Hit


def check(path: Path) -> None:
    """Refuse what `write` cannot write, before anything is searched.

    Raises:
        UserError: another suffix, or no folder to write into.
    """
    if path.suffix not in (".html", ".png"):
        raise UserError(
            f"--out {path}: a contact sheet is .html or .png, answers are .json or .csv"
        )
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")


def write(path: Path, query: Query, hits: Sequence[Hit], *, note: str) -> Path:
    """Write a contact sheet.

    Args:
        path: .html or .png.
        query: what was searched for.
        hits: its answers, best first.
        note: what was searched, in words.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    check(path)
    try:
        if path.suffix == ".png":
            sheet = _sheet(query, hits, note)
            replace_file(path, lambda file: sheet.save(file, format="PNG"))
        else:
            replace_file(path, _page(query, hits, note))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path


def _page(query: Query, hits: Sequence[Hit], note: str) -> str:
    tiles = [_Tile(_data(hit.image), hit.id, hit) for hit in hits]
    return render(
        "contact_sheet.html",
        query=query,
        image=_data(query.image),
        tiles=tiles,
        note=note,
    )


def _data(image: Path | None) -> str | None:
    return None if image is None else thumbnail(image.parent, image.name)


def _sheet(query: Query, hits: Sequence[Hit], note: str) -> Image.Image:
    """The query in front unless it is a sentence, answers in rows, similarity below each."""
    own = [(query.image, INK, "query", "")] if query.image else []
    tiles = [*own, *map(_described, hits)]
    columns = max(min(_COLUMNS, len(tiles)), 1)
    lines = -(-len(tiles) // columns)
    wide, high = _TILE[0] + _MARGIN, _TILE[1] + _TEXT + _MARGIN
    sheet = Image.new("RGB", (max(columns * wide + _MARGIN, 640), lines * high + 56), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    pen.text((_MARGIN, _MARGIN), f"{query.name}   {note}", fill=INK, font=font)
    for number, (image, color, first, second) in enumerate(tiles):
        x = _MARGIN + number % columns * wide
        y = 44 + number // columns * high
        pen.rectangle((x, y, x + _TILE[0], y + _TILE[1]), fill=color)
        inner = (_TILE[0] - 2 * _FRAME + 1, _TILE[1] - 2 * _FRAME + 1)
        sheet.paste(_opened(image, inner), (x + _FRAME, y + _FRAME))
        pen.text((x, y + _TILE[1] + 3), first, fill=INK, font=font)
        pen.text((x, y + _TILE[1] + 20), second, fill=MUTED, font=font)
    return sheet


def _described(hit: Hit) -> tuple[Path | None, str, str, str]:
    color = {True: RIGHT, False: WRONG, None: _PALE}[hit.right]
    mark = {True: " right", False: " wrong", None: ""}[hit.right]
    camera = f"camera {hit.camera}" if hit.camera >= 0 else hit.modality
    return hit.image, color, f"{hit.similarity:.2f}{mark}", camera


def _opened(image: Path | None, size: tuple[int, int]) -> Image.Image:
    """The image at a size, an empty one where there is none."""
    if image is None:
        return Image.new("RGB", size, "white")
    try:
        return open_rgb(read_bytes(image)).resize(size, Image.Resampling.LANCZOS)
    except (OSError, ValueError):
        return Image.new("RGB", size, _PALE)
