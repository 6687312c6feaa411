"""Vectors of tracklets, and vectors without near-duplicates, made of those of all images.

All vectors stay in the folder `images` below, where `embed` goes on; what is pooled or thinned is
made of them anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.evaluation.encoder import describe
from pipelines.retrieval import vectors
from pipelines.retrieval.embed import Embedded, embed
from pipelines.retrieval.sources import Source
from pipelines.retrieval.vectors import VectorInfo, WrittenInfo
from pipelines.storage.files import replace_file
from reid_core.near_duplicates import representatives
from reid_core.types import Modality, Sample

IMAGES, DUPLICATES = "images", "duplicates.jsonl"
_ROWS = 16_384  # of a file
_NEVER = datetime.max.replace(tzinfo=UTC)


def embed_tracklets(checkpoint: Path, source: Source, out: Path, **options: Any) -> Embedded:
    """Embed images, and write a vector per tracklet: the mean of its unit rows.

    An image without a tracklet keeps its own. Memory holds one vector per tracklet.

    Args:
        checkpoint, source, out: see `pipelines.retrieval.embed.embed`.
        options: of `embed`.

    Raises:
        UserError: as `embed`; no image has a tracklet, or one shows two identities.
    """
    source = source.as_trained(describe(checkpoint).config.data)
    if all(sample.tracklet < 0 for sample in source.samples()):
        raise UserError(
            f"no image of {source.path} has a tracklet: a manifest's column tracklet, or a folder "
            "for each track, says which track an image was cut from"
        )
    done = embed(checkpoint, source, _images_of(out, "tracklet"), **options)
    info = vectors.read_info(out / IMAGES)
    means = _Means(info["dim"])
    for path in vectors.part_files(out / IMAGES):
        means.add(pq.read_table(path))
    count = _write(out, info, "tracklet", means.batches())
    return replace(done, num_vectors=count)


def embed_distinct(
    checkpoint: Path, source: Source, out: Path, *, above: float, **options: Any
) -> tuple[Embedded, int]:
    """Embed images, and leave out those that are nearly the same as one that stays.

    Memory holds all vectors. Only images of one modality are compared.

    Args:
        checkpoint, source, out: see `pipelines.retrieval.embed.embed`.
        above: cosine from which two images are nearly the same.
        options: of `embed`.

    Returns:
        What was done, and how many images were left out; `duplicates.jsonl` names them.

    Raises:
        UserError: as `embed`; `above` is no such cosine.
    """
    if not 0 < above <= 1:
        raise UserError(f"--dedup {above:g}: a cosine above 0 and up to 1, such as 0.98")
    done = embed(checkpoint, source, _images_of(out, f"dedup {above:g}"), **options)
    info = vectors.read_info(out / IMAGES)
    rows = pa.concat_tables([pq.read_table(path) for path in vectors.part_files(out / IMAGES)])
    flat, ids = _unit(rows, info["dim"]), rows["id"].to_pylist()
    remaining, lines = np.ones(len(rows), dtype=bool), []
    for modality in sorted(set(rows["modality"].to_pylist())):
        own = np.flatnonzero(pc.equal(rows["modality"], modality).to_numpy())
        for first, others in representatives(flat[own], above=above):
            remaining[own[others]] = False
            left_out = [ids[place] for place in own[others]]
            lines.append({"kept": ids[own[first]], "left_out": left_out})
    replace_file(out / DUPLICATES, "".join(json.dumps(line) + "\n" for line in lines))
    chosen = rows.filter(pa.array(remaining))
    parts = (chosen.slice(start, _ROWS) for start in range(0, len(chosen), _ROWS))
    count = _write(out, info, f"dedup {above:g}", parts)
    return replace(done, num_vectors=count), int((~remaining).sum())


@dataclass
class _Track:
    """What is known of a tracklet: its earliest image, and what its images are hashed to.

    Of images without times it is that which was read first.
    """

    first: Sample
    digest: Any
    count: int = 0


class _Means:
    """Sums of the unit rows of each tracklet, in order of appearance."""

    def __init__(self, dim: int) -> None:
        self._sums = np.zeros((1024, dim), dtype=np.float32)
        self._places: dict[tuple[str, int, int] | str, int] = {}
        self._tracks: list[_Track] = []

    def add(self, part: pa.Table) -> None:
        """Add the rows of a file.

        Raises:
            UserError: a tracklet that shows two identities.
        """
        flat = _unit(part, self._sums.shape[1])
        for row, vector in zip(part.drop_columns(["vector"]).to_pylist(), flat, strict=True):
            place = self._place(row)
            track = self._tracks[place]
            if track.first.pid != row["pid"]:
                raise UserError(
                    f"tracklet {row['tracklet']} of camera {row['camera']} shows identity "
                    f"{track.first.pid} on {track.first.image} and {row['pid']} on {row['id']}: "
                    "a track is of one identity"
                )
            if (row.get("time") or _NEVER) < (track.first.time or _NEVER):
                track.first = _sample(row)
            track.count += 1
            track.digest.update(row["content"].encode())
            self._sums[place] += vector

    def _place(self, row: dict[str, Any]) -> int:
        tracked = row["tracklet"] >= 0
        key = (row["modality"], row["camera"], row["tracklet"]) if tracked else row["id"]
        if key not in self._places:
            self._places[key] = len(self._tracks)
            self._tracks.append(_Track(_sample(row), hashlib.blake2b(digest_size=12)))
            if len(self._tracks) > len(self._sums):
                self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        return self._places[key]

    def batches(self) -> Iterator[pa.Table]:
        """Rows as `vectors.table` makes them."""
        for start in range(0, len(self._tracks), _ROWS):
            tracks = self._tracks[start : start + _ROWS]
            sums = self._sums[start : start + len(tracks)]
            yield vectors.table(
                [track.first for track in tracks],
                sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12),
                contents=[track.digest.hexdigest() for track in tracks],
                images=[track.count for track in tracks],
                ids=[_name(track.first) for track in tracks],
            )


def _sample(row: dict[str, Any]) -> Sample:
    modality, seen = Modality(row["modality"]), (row["pid"], row["camera"])
    return Sample(row["id"], modality, *seen, tracklet=row["tracklet"], time=row.get("time"))


def _name(first: Sample) -> str:
    """Of a tracklet's vector; an image without a tracklet keeps its own."""
    if first.tracklet < 0:
        return first.image
    camera = first.camera if first.camera >= 0 else "unknown"
    return f"tracklet/{first.modality}/{camera}/{first.tracklet}"


def _images_of(out: Path, pool: str) -> Path:
    """The folder of all vectors below one of pooled ones.

    Raises:
        UserError: `out` is used for something else.
    """
    if (out / vectors.INFO).is_file():
        before = vectors.read_info(out).get("pool", "image")
        if before != pool:
            raise UserError(
                f"{out} holds vectors of {before}, not of {pool}: choose another folder"
            )
    elif out.exists() and any(entry.name != IMAGES for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {vectors.INFO}: choose another folder")
    return out / IMAGES


def _unit(part: pa.Table, dim: int) -> np.ndarray:
    flat: np.ndarray = part["vector"].combine_chunks().flatten().to_numpy().astype(np.float32)
    rows = flat.reshape(-1, dim)
    lengths: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.maximum(lengths, 1e-12)
    return unit


def _write(out: Path, info: WrittenInfo, pool: str, parts: Iterator[pa.Table]) -> int:
    """Replace the files of a folder; returns the number of vectors."""
    given: dict[str, Any] = dict(info)
    known = {name: given[name] for name in VectorInfo.__dataclass_fields__ if name in given}
    vectors.describe(out, VectorInfo(**known | {"pool": pool}), Path(info["checkpoint"]))
    planned: list[str] = []
    for number, part in enumerate(parts):
        key = f"{number:06d}"
        kind = pa.list_(pa.float16() if info["dtype"] == "float16" else pa.float32(), info["dim"])
        place = part.schema.get_field_index("vector")
        vectors.write_part(out, key, part.set_column(place, "vector", part["vector"].cast(kind)))
        planned.append(key)
    return vectors.finish(out, planned, _messages(out / IMAGES / vectors.UNREADABLE))


def _messages(path: Path) -> Sequence[str]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
