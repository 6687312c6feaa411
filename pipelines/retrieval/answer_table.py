"""The answers of a search for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter
from pipelines.retrieval.search import Hit, Query


def table(query: Query, hits: Sequence[Hit]) -> Table:
    """A row per answer; columns that say nothing are left out."""
    title = f"nearest to {escape(query.name)}"
    if not hits:
        title += ": no row but itself, or none so likely; ask for other rows, or more of them"
    shown = Table(title=title, title_justify="left")
    lines = [_cells(rank, hit) for rank, hit in enumerate(hits, start=1)]
    always = {"", "similarity", "modality", "camera", "identity", "id"}
    columns = [name for name in _SIDES if name in always or any(line[name] for line in lines)]
    for name in columns:
        shown.add_column(name, justify=_SIDES[name], overflow="fold")  # type: ignore[arg-type]
    for line in lines:
        shown.add_row(*(line[name] for name in columns))
    return shown


_SIDES = {"": "right", "similarity": "right", "probability": "right", "modality": "left"}
_SIDES |= {"camera": "right", "time": "left", "identity": "right", "id": "left"}


def _cells(rank: int, hit: Hit) -> dict[str, str]:
    mark = {True: " \N{CHECK MARK}", False: " \N{BALLOT X}", None: ""}[hit.right]
    return {
        "": str(rank),
        "similarity": f"{hit.similarity:.3f}",
        "probability": "" if hit.probability is None else f"{hit.probability:.3f}",
        "modality": hit.modality,
        "camera": str(hit.camera) if hit.camera >= 0 else "",
        "time": "" if hit.time is None else f"{hit.time:%Y-%m-%d %H:%M:%S}",
        "identity": escape(hit.name or (str(hit.pid) if hit.pid >= 0 else "")) + mark,
        "id": escape(hit.id) + (f" ({hit.images} images)" if hit.images > 1 else ""),
    }


def described(gallery: Gallery, *, where: Filter | None, reranked: bool) -> str:
    """What was searched, in words."""
    text = f"{len(gallery):,} vectors"
    if where is not None and str(where):
        text += f", only {where}"
    return text + (", re-ranked by shared neighbors" if reranked else "")
