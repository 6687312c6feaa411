"""Any data, listed row by row in a CSV, JSON-lines or Parquet file."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from reid_core import protocols
from reid_core.datasets.layouts import Layout
from reid_core.types import Dataset, Modality, Sample, Split

log = logging.getLogger(__name__)

NAMES = ("manifest.parquet", "manifest.jsonl", "manifest.csv")
KIND_KEY = b"crossreid.kind"
_COLUMNS = ("image", "modality", "pid", "camera", "caption", "split", "bytes")
_SPLITS = ("train", "val", "test", "query", "gallery")


def read(root: str | os.PathLike[str]) -> Dataset:
    """Lists what a manifest names; pictures are not opened.

    Columns, the first two being required:

    - ``image``: path relative to the manifest's folder, absolute path or URI; of a text row the
      image that it describes. May be left out where a Parquet file holds ``bytes``.
    - ``modality``: visible, infrared or text.
    - ``pid``, ``camera``: whole numbers; empty where unknown.
    - ``caption``: the sentence of a text row; on an image row it adds a text record of its own.
    - ``split``: train (where empty), val, test, or query and gallery, which together are the test
      split; queries are of one modality, gallery images of another one. In a split named test,
      visible images are the gallery.

    Args:
        root: the file, or a folder that holds manifest.parquet, manifest.jsonl or manifest.csv.

    Returns:
        Records in the order of the rows, queries before gallery. Its kind is "manifest", or in a
        converted data set the kind of the original, whose protocols then apply.

    Raises:
        ValueError: no such file, a missing column, or a value that cannot be understood; names
            the row.
    """
    path = _find(Path(root))
    kind, rows = _load(path)
    splits: dict[str, list[Sample]] = {name: [] for name in _SPLITS}
    for number, row in enumerate(rows, start=1):
        split, records = _parse(row, f"{path}, row {number}")
        splits[split] += records
    if not any(splits.values()):
        raise ValueError(f"{path} has no rows")
    _check_roles(path, splits)
    if kind == "manifest":  # the protocol of manifests asks with the modality that stands first
        splits["test"].sort(key=lambda sample: sample.modality == Modality.VISIBLE)
        splits["val"].sort(key=lambda sample: sample.modality == Modality.VISIBLE)
    test = (*splits["query"], *splits["gallery"], *splits["test"])
    return Dataset(
        kind, path.parent, Split(tuple(splits["train"])), Split(tuple(splits["val"])), Split(test)
    )


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    found = [root / name for name in NAMES if (root / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{root} holds {' and '.join(p.name for p in found)}: name one of them")
    raise ValueError(f"{root / NAMES[0]} is missing: expected one of {', '.join(NAMES)}")


def _load(path: Path) -> tuple[str, Iterable[Mapping[str, Any]]]:
    """Kind and rows; the bytes of images are not read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        schema = pq.read_schema(path)
        _check_columns(path, schema.names)
        kept = [name for name in schema.names if name in _COLUMNS and name != "bytes"]
        kind = (schema.metadata or {}).get(KIND_KEY, b"manifest").decode()
        rows = pq.read_table(path, columns=kept).to_pylist()
        if "image" not in kept:
            rows = [row | {"image": f"{path.name}#{i}"} for i, row in enumerate(rows)]
        return kind, rows
    if suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            _check_columns(path, table.fieldnames or ())
            return "manifest", list(table)
    if suffix == ".jsonl":
        return "manifest", _json_lines(path)
    raise ValueError(f"{path}: a manifest ends with .parquet, .jsonl or .csv")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON object: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no JSON object: {line[:60]}")
        rows.append(row)
    _check_columns(path, dict.fromkeys(name for row in rows for name in row))
    return rows


def _check_columns(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    missing = {"image", "modality"} - set(names)
    if "bytes" in names:
        missing -= {"image"}
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(names)}"
        )
    unread = [name for name in names if name not in _COLUMNS]
    if unread:
        log.warning(
            "%s: columns %s are not read; known are %s",
            path,
            ", ".join(unread),
            ", ".join(_COLUMNS),
        )


def _parse(row: Mapping[str, Any], where: str) -> tuple[str, list[Sample]]:
    """Split and records of one row."""
    split = str(row.get("split") or "train").lower()
    if split not in _SPLITS:
        raise ValueError(f"{where}: split {split!r} is none of {', '.join(_SPLITS)}")
    try:
        modality = Modality(str(row["modality"]).lower())
    except (KeyError, ValueError) as error:
        valid = ", ".join(Modality)
        raise ValueError(f"{where}: modality {row.get('modality')!r} is none of {valid}") from error
    image, caption = str(row.get("image") or ""), str(row.get("caption") or "").strip()
    pid, camera = (_number(row, name, where) for name in ("pid", "camera"))
    if modality == Modality.TEXT:
        if not caption:
            raise ValueError(f"{where}: a text row needs a caption")
        return split, [Sample(image, modality, pid, camera, caption)]
    if not image:
        raise ValueError(f"{where}: image is empty")
    records = [Sample(image, modality, pid, camera)]
    if caption:
        records.append(Sample(image, Modality.TEXT, pid, camera, caption))
    return split, records


def _number(row: Mapping[str, Any], name: str, where: str) -> int:
    value = row.get(name)
    if value is None or value == "" or value != value:  # NaN: empty in a column of floats
        return -1
    try:
        if (number := int(value)) == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where}: {name} must be a whole number or empty, not {value!r}")


def _check_roles(path: Path, splits: Mapping[str, list[Sample]]) -> None:
    query, gallery = ({sample.modality for sample in splits[name]} for name in ("query", "gallery"))
    if not query and not gallery:
        return
    if splits["test"]:
        raise ValueError(f"{path}: rows of split test cannot stand beside query and gallery")
    if len(query) != 1 or len(gallery) != 1 or query == gallery:
        raise ValueError(
            f"{path}: queries must be of one modality and the gallery of another one; queries are "
            f"{' and '.join(sorted(query)) or 'missing'}, "
            f"the gallery is {' and '.join(sorted(gallery)) or 'missing'}"
        )


LAYOUT = Layout(
    "manifest",
    "rows of a manifest",
    read,
    protocols.manifest,
    headline="manifest/all/query_to_gallery",
    headline_words="query rows against gallery rows",
)
