"""The answers of a search as a file for programs: JSON, or a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.retrieval.search import Hit, Query
from pipelines.storage.files import Json, replace_file, to_json

SUFFIXES = (".json", ".csv")
_COLUMNS = (
    "query",
    "rank",
    "id",
    "image",
    "similarity",
    "probability",
    "modality",
    "camera",
    "pid",
    "tracklet",
    "images",
    "time",
    "name",
    "right",
)


def check(path: Path) -> None:
    """Refuse what `write` cannot write, before anything is searched.

    Raises:
        UserError: no folder to write into.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")


def write(path: Path, query: Query, hits: Sequence[Hit]) -> Path:
    """Write a row per answer, best first; what is not known is null, in a table an empty cell.

    Args:
        path: ends with one of `SUFFIXES`.
        query: what was searched for.
        hits: its answers.

    Raises:
        UserError: the file cannot be written.
    """
    check(path)
    rows = [_row(query, rank, hit) for rank, hit in enumerate(hits, start=1)]
    try:
        replace_file(path, to_json(rows) if path.suffix == ".json" else _table(rows))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _row(query: Query, rank: int, hit: Hit) -> dict[str, Json]:
    known: dict[str, Json] = {
        name: None if getattr(hit, name) == -1 else getattr(hit, name)
        for name in ("id", "modality", "camera", "pid", "tracklet", "images", "right")
    }
    known |= {
        "query": query.name,
        "rank": rank,
        "image": None if hit.image is None else str(hit.image),
        "similarity": round(hit.similarity, 4),
        "probability": None if hit.probability is None else round(hit.probability, 4),
        "time": None if hit.time is None else hit.time.isoformat(),
        "name": hit.name or None,
    }
    return {name: known[name] for name in _COLUMNS}


def _table(rows: Sequence[dict[str, Json]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
