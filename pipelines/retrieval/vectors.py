"""The files of embeddings: a folder of Parquet parts, and embedding.json, which says what they are.

Columns: id (string), modality, camera (int32), pid and tracklet (int64), -1 where unknown, images
(int32, how many the vector is the mean of), content (hash of the image file), vector (fixed size
list of float16 or float32, unit length).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.retrieval.sources import record_id
from pipelines.storage.abandoned import remove_partial
from pipelines.storage.files import replace_file, write_json
from reid_core.types import Sample

Dtype = Literal["float16", "float32"]
INFO, UNREADABLE = "embedding.json", "unreadable.jsonl"
FORMAT = 1
_SKIPPED = b"crossreid.skipped"
_BY_NAME = "by name"


@dataclass(frozen=True)
class VectorInfo:
    """What a folder of vectors holds; folders that differ in any of it are not mixed.

    Attributes:
        fingerprint: of the encoder.
        space: "descriptor" or "joint".
        dtype: of the vectors.
        dim: their width D.
        root: folder that ids are relative to.
        source: what was embedded.
        pool: what a vector is of: "image", "tracklet", or "dedup <cosine>" for images that are
            not nearly the same.
    """

    fingerprint: str
    space: str
    dtype: str
    dim: int
    root: str
    source: str
    pool: str = "image"


class WrittenInfo(TypedDict):
    """embedding.json: a `VectorInfo`, the checkpoint's folder, and whether all parts are there.

    folder_pids says how identities of the layout folder are numbered: by their names, or, where it
    is missing, as older versions did, in sorted order.
    """

    format: int
    checkpoint: str
    complete: bool
    fingerprint: str
    space: str
    dtype: str
    dim: int
    root: str
    source: str
    pool: NotRequired[str]
    folder_pids: NotRequired[str]


def claim(out: Path, info: VectorInfo, checkpoint: Path) -> None:
    """Make the folder, or go on in it where it holds vectors of the same kind and source.

    Raises:
        UserError: not writable, or used for something else; names what differs.
    """
    known = out / INFO
    if known.is_file():
        before = read_info(out)
        changed = [
            f"{key}: {before.get(key)} -> {value}"
            for key, value in asdict(info).items()
            if before.get(key, "image" if key == "pool" else None) != value
        ]
        if changed:
            raise UserError(
                f"{out} holds other vectors:\n  "
                + "\n  ".join(changed)
                + "\nchoose another folder, or delete that one"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no {INFO}: choose another folder")
    describe(out, info, checkpoint)


def describe(out: Path, info: VectorInfo, checkpoint: Path) -> None:
    """Write embedding.json of a folder that is not complete.

    Raises:
        UserError: not writable.
    """
    content = asdict(info) | {"format": FORMAT, "checkpoint": str(checkpoint.resolve())}
    content["folder_pids"] = _BY_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / INFO, content | {"complete": False})
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror}; choose another folder"
        ) from error


def read_info(folder: Path) -> WrittenInfo:
    """embedding.json of a folder that `embed` wrote.

    Raises:
        UserError: there is none, a damaged one, or one of another format.
    """
    path = folder / INFO
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a folder that `crossreid embed` wrote")
    try:
        info: WrittenInfo = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: embed again into a new folder") from error
    if not isinstance(info, dict):
        raise UserError(f"{path} is damaged: it holds no object; embed again into a new folder")
    if info.get("format") != FORMAT:
        raise UserError(f"{path} has format {info.get('format')}, this version reads {FORMAT}")
    texts = [info.get(key) for key in ("fingerprint", "space", "root", "checkpoint")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(info.get("dim"), int):
        raise UserError(f"{path} is damaged: keys are missing; embed again into a new folder")
    return info


def part_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, in a fixed order."""
    return sorted(folder.glob("part-*.parquet"))


def write_part(out: Path, key: str, rows: pa.Table, skipped: Sequence[str] = ()) -> None:
    """Write one part, whole or not at all.

    Args:
        out: the folder.
        key: name of the part.
        rows: what was embedded, see `table`.
        skipped: messages about what could not be read.
    """
    rows = rows.replace_schema_metadata({_SKIPPED: json.dumps(list(skipped)).encode()})
    replace_file(_file(out, key), lambda file: pq.write_table(rows, file))


def table(
    rows: Sequence[Sample],
    vectors: np.ndarray,
    *,
    contents: Sequence[str] = (),
    images: Sequence[int] = (),
    ids: Sequence[str] = (),
) -> pa.Table:
    """Rows as they are stored.

    Args:
        rows: what was embedded.
        vectors: (n, D) of the rows.
        contents: hashes of the image files, none where unknown.
        images: how many images each vector is the mean of, none for one each.
        ids: names of the rows, none for `record_id`; their images then have a column of their own.
    """
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    columns = {"image": pa.array([row.image for row in rows], pa.string())} if ids else {}
    return pa.table(
        {
            "id": pa.array(ids or [record_id(row) for row in rows], pa.string()),
            **columns,
            "modality": pa.array([str(row.modality) for row in rows], pa.string()),
            "camera": pa.array([row.camera for row in rows], pa.int32()),
            "pid": pa.array([row.pid for row in rows], pa.int64()),
            "tracklet": pa.array([row.tracklet for row in rows], pa.int64()),
            "images": pa.array(images or [1] * len(rows), pa.int32()),
            "time": pa.array([row.time for row in rows], pa.timestamp("us", tz="UTC")),
            "content": pa.array(contents or [""] * len(rows), pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def read_part(out: Path, key: str) -> pa.Table | None:
    """Rows of a finished part, None of one that is missing, damaged or of an older version."""
    try:
        rows = pq.read_table(_file(out, key)).replace_schema_metadata()
    except (OSError, pa.ArrowException):
        return None
    return rows if rows.column_names == table([], np.empty((0, 1))).column_names else None


def skipped(out: Path, key: str) -> list[str] | None:
    """Messages of a finished part, None of one that is missing or damaged."""
    try:
        messages: list[str] = json.loads(pq.read_schema(_file(out, key)).metadata[_SKIPPED])
        return messages
    except (OSError, pa.ArrowInvalid, KeyError, TypeError):
        return None


def finish(out: Path, planned: Iterable[str], messages: Sequence[str]) -> int:
    """Drop what belongs to nothing any more, list unreadable images, mark the folder complete.

    Args:
        out: the folder.
        planned: keys of the parts that belong to it.
        messages: about what could not be read.

    Returns:
        Number of vectors that its files hold.

    Raises:
        UserError: a part is not there, or damaged; the folder stays incomplete.
    """
    files = [_file(out, key) for key in dict.fromkeys(planned)]
    num_vectors = sum(map(_num_rows, files))
    for path in set(part_files(out)) - set(files):
        path.unlink()
    remove_partial(out)
    replace_file(out / UNREADABLE, "".join(json.dumps(message) + "\n" for message in messages))
    info = read_info(out) | {"complete": True, "num_vectors": num_vectors}
    write_json(out / INFO, info)
    return num_vectors


def _num_rows(file: Path) -> int:
    try:
        count: int = pq.read_metadata(file).num_rows
        return count
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{file} is not there or is damaged, so that {file.parent} is not complete: leave the "
            "folder alone, and run the same command again"
        ) from error


def _file(out: Path, key: str) -> Path:
    return out / f"part-{key}.parquet"
