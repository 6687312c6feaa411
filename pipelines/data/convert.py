"""A data set packed into Parquet shards: fewer files, any storage, the same samples.

Ray Data writes the shards, each whole or not at all; a second run writes those that are missing or
whose images have changed since. The manifest comes last, so that its presence says that all the
rest is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from rich.progress import track

from pipelines.cluster import preflight
from pipelines.cluster import session as cluster
from pipelines.config import run as configuration
from pipelines.data import one_shard, roots
from pipelines.data.packed import MANIFEST, Plan, Target
from pipelines.data.places import ROOT_ALONE, Trusted
from pipelines.errors import UserError
from pipelines.runs.console import console
from pipelines.storage.shards import INDEX, location, parquet_row
from reid_core.datasets import LAYOUTS
from reid_core.datasets.counts import EXPECTED, SPLITS
from reid_core.datasets.manifest import KIND_KEY, SIZE_KEY
from reid_core.types import MAX_MEGAPIXELS, Dataset

_IMAGES_PER_SHARD = 1024


@dataclass(frozen=True)
class Converted:
    """What is there now.

    Attributes:
        num_images, num_shards: in all.
        num_written: shards that this run wrote.
    """

    num_images: int
    num_shards: int
    num_written: int


def convert(
    kind: str,
    root: Path,
    out: str,
    *,
    size: str | None = None,
    trial: int = 1,
    images_per_shard: int = _IMAGES_PER_SHARD,
    trusted: Trusted = ROOT_ALONE,
    ray_address: str | None = None,
) -> Converted:
    """Pack what is not packed yet.

    Args:
        kind: a key of `reid_core.datasets.LAYOUTS`.
        root: as its reader wants it; all nodes see it under the same path.
        out: folder or URI that pyarrow or fsspec can write to; all nodes can.
        size: "HxW" resizes with Lanczos where an image has another size, and keeps the pixels
            without compression, so that training at this size gets the very same input as from
            the tree, sooner; None keeps the bytes.
        trial: which of RegDB's divisions the manifest has.
        images_per_shard: images of a shard.
        trusted: where images may lie beside the root.
        ray_address: cluster to use, None for one on this machine.

    Raises:
        UserError: not a data set of this layout, `out` holds another conversion, a bad size, or
            images cannot be read; the shards without such images are written nevertheless.
    """
    shape = _parse_size(size)
    if trial != 1 and not (kind in LAYOUTS and LAYOUTS[kind].has_trials):
        raise UserError(f"--trial {trial}: {kind} has no divisions, RegDB has")
    dataset = roots.read(kind, root.resolve(), trial=trial, trusted=trusted)
    if "://" not in out and os.path.realpath(out) == os.path.realpath(dataset.root):
        raise UserError(f"{out} is the data set itself: choose another folder")
    named = (r.image for s in SPLITS for r in getattr(dataset, s).samples)
    images = list(dict.fromkeys(image for image in named if image))  # of a sentence about none
    parts = [images[i : i + images_per_shard] for i in range(0, len(images), images_per_shard)]
    target = Target(out if "://" in out else str(Path(out).resolve()))
    target.claim(_plan(dataset, trial, size, images_per_shard, parts))
    missing = target.missing(len(parts))
    if missing:
        config = configuration.validate(
            {"data": {"root": str(root)}, "ray": {"address": ray_address}}, source="data convert"
        )
        with cluster.session(config):
            _write_shards({part: parts[part] for part in missing}, dataset.root, target, shape)
    if missing or not target.has(MANIFEST):
        _write_lists(target, dataset, parts, size)
    return Converted(len(images), len(parts), len(missing))


def _plan(
    dataset: Dataset,
    trial: int,
    size: str | None,
    images_per_shard: int,
    parts: Sequence[Sequence[str]],
) -> Plan:
    """What decides the content of every shard and of the lists."""
    return {
        "kind": dataset.kind,
        "root": location(dataset.root),
        "trial": trial,
        "size": size,
        "images_per_shard": images_per_shard,
        "images": sum(map(len, parts)),
        "names": _digest(image for part in parts for image in part),
        "rows": _digest(map(repr, _rows(dataset))),
        "parts": [_digest(_stamp(dataset.root / image) for image in part) for part in parts],
    }


def _digest(texts: Iterable[str]) -> str:
    result = hashlib.blake2b(digest_size=8)
    for text in texts:
        result.update(text.encode() + b"\n")
    return result.hexdigest()


def _stamp(path: Path) -> str:
    """Size and time of a file, or of the Parquet file that an image is a row of; "" of a URI."""
    row = parquet_row(str(path))
    try:
        status = os.stat(row[0] if row else path)
    except (OSError, ValueError):  # read anyway, and named there
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _parse_size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    result = re.fullmatch(r"(\d+)x(\d+)", size)
    if not result or "0" in result.groups():
        raise UserError(f"--size {size}: expected height x width in pixels, e.g. 288x144")
    height, width = int(result[1][:9]), int(result[2][:9])
    if height * width > MAX_MEGAPIXELS * 1e6:
        raise UserError(f"--size {size}: more than {MAX_MEGAPIXELS:g} megapixels an image")
    return height, width


def _write_shards(
    parts: Mapping[int, list[str]], root: Path, target: Target, shape: tuple[int, int] | None
) -> None:
    tasks = [{"part": part, "images": images} for part, images in parts.items()]

    def write(task: dict[str, Any]) -> dict[str, str]:
        return {
            "wrong": json.dumps(one_shard.write(task["part"], task["images"], root, target, shape))
        }

    if "://" not in target.location:
        preflight.require_shared(Path(target.location))
    # One block per shard: a task that fails is tried again without the others.
    done = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(write).iter_rows()
    shown = track(
        done, total=len(tasks), description="writing shards", console=console, transient=True
    )
    wrong = [message for row in shown for message in json.loads(row["wrong"])]
    if wrong:
        examples = "\n  ".join(sorted(wrong)[:10])
        raise UserError(
            f"images that cannot be packed: {len(wrong)}\n  {examples}\n"
            "mend them (crossreid data check names all) and run again: only the shards that they "
            "belong to are missing"
        )


def _write_lists(
    target: Target, dataset: Dataset, parts: Sequence[Sequence[str]], size: str | None
) -> None:
    places = [
        (one_shard.name_of(image), part, row, image)
        for part, images in enumerate(parts)
        for row, image in enumerate(images)
    ]
    names = ("image", "part", "row", "source")
    target.write_table(INDEX, pa.table(dict(zip(names, zip(*places, strict=True), strict=True))))
    expected = dataset.root / EXPECTED
    if expected.is_file():
        target.write(expected.name, expected.read_bytes())
    rows = [{**row, "image": one_shard.name_of(row["image"])} for row in _rows(dataset)]
    size = size or (dataset.size and "x".join(map(str, dataset.size)))
    notes = {KIND_KEY: dataset.kind} | ({SIZE_KEY: size} if size else {})
    target.write_table(MANIFEST, pa.Table.from_pylist(rows).replace_schema_metadata(notes))


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Those of the manifest, with the names of the original."""
    for split in SPLITS:
        for sample in getattr(dataset, split).samples:
            yield {
                "image": sample.image,
                "modality": str(sample.modality),
                "pid": sample.pid,
                "camera": sample.camera,
                "tracklet": sample.tracklet,
                "time": sample.time,
                "caption": sample.caption,
                "split": split,
            }
