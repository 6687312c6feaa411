"""Any data, listed row by row in a CSV, JSON-lines or Parquet file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reid_core import protocols
from reid_core.datasets.layouts import Layout
from reid_core.datasets.manifest_rows import SPLITS, number_tracklets, rows
from reid_core.types import Dataset, Modality, Sample, Split

NAMES = ("manifest.parquet", "manifest.jsonl", "manifest.csv")
KIND_KEY, SIZE_KEY = "crossreid.kind", "crossreid.size"
"""What a converted data set says of itself: the layout of the original, and "HxW" where all images
were resized."""


def read(root: str | os.PathLike[str]) -> Dataset:
    """Lists what a manifest names; images are not opened.

    Columns, the first two being required:

    - ``image``: path relative to the manifest's folder, absolute path or URI; of a text row the
      image that it describes. May be left out where a Parquet file holds ``bytes``.
    - ``modality``: visible, infrared or text.
    - ``pid``, ``camera``: whole numbers; empty where unknown.
    - ``tracklet``: number or name of the track that an image was cut from; empty where unknown.
    - ``time``: when it was seen, as 2026-11-27T14:05 or seconds since 1970; empty where unknown.
      One that cannot be understood is unknown too, and counted: training reads none.
    - ``caption``: the sentence of a text row; on an image row it adds a text record of its own,
      and a further row of the same image with another sentence nothing but that.
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
    notes, listed = notes_of(path), list(rows(path))
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    for row, tracklet in zip(listed, number_tracklets([r.tracklet for r in listed]), strict=True):
        splits[row.split] += row.samples(tracklet)
    if not any(splits.values()):
        raise ValueError(f"{path} has no rows")
    _check_roles(path, splits)
    if KIND_KEY not in notes:  # else the order is that of the original
        # the protocol of manifests asks with the modality that stands first
        searched = {sample.modality for sample in splits["gallery"]} or {Modality.VISIBLE}
        splits["test"].sort(key=lambda sample: sample.modality in searched)
        splits["val"].sort(key=lambda sample: sample.modality in searched)
    size = notes.get(SIZE_KEY, "").split("x")
    return Dataset(
        kind=notes.get(KIND_KEY, "manifest"),
        root=path.parent,
        train=Split(tuple(splits["train"])),
        val=Split(tuple(splits["val"])),
        test=Split((*splits["query"], *splits["gallery"], *splits["test"])),
        size=(int(size[0]), int(size[1])) if len(size) == 2 else None,
    )


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    if os.path.lexists(root) and not root.is_dir():
        raise ValueError(f"{root} is no regular file (a pipe, a device, a link to nowhere)")
    result = [root / name for name in NAMES if (root / name).is_file()]
    if len(result) == 1:
        return result[0]
    if result:
        raise ValueError(f"{root} holds {' and '.join(p.name for p in result)}: name one of them")
    raise ValueError(f"{root / NAMES[0]} is missing: expected one of {', '.join(NAMES)}")


def notes_of(path: Path) -> dict[str, str]:
    """What the manifest of a converted data set says of it, see `KIND_KEY`; of others nothing.

    Raises:
        ValueError: a damaged Parquet file.
    """
    if path.suffix.lower() != ".parquet":
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a readable parquet file: damaged, or of another kind; write it again"
        ) from error
    return {
        key.decode(): x.decode() for key, x in metadata.items() if key.startswith(b"crossreid.")
    }


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
    has_paths=True,
)
