"""Filling a gallery: from vectors that `embed` wrote, from images, with enrolled identities."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.cluster.preflight import NotSharedError
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import additions, vectors
from pipelines.retrieval.embed import EmbedOptions, embed
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.gallery import Added, Facts, Gallery
from pipelines.retrieval.gallery_rows import schema, spellings
from pipelines.retrieval.missing import Elsewhere, missing, remove_outdated
from pipelines.retrieval.sources import Source, image_of, pid_of, record_id
from pipelines.retrieval.vectors import WrittenInfo
from pipelines.runs.checkpoint import find
from pipelines.storage.files import reason
from pipelines.storage.shards import read_bytes
from reid_core.datasets.files import require_utf8
from reid_core.datasets.folder import identity_of
from reid_core.types import Modality, Sample

log = logging.getLogger(__name__)
_AT_ONCE = 100_000  # rows of a transaction
_SHOWN = 10  # messages about images that cannot be read


def add_vectors(
    uri: str | Path, folder: Path, *, new_encoder: bool = False, recall: float | None = None
) -> Added:
    """Add what a folder of `crossreid embed` holds.

    Raises:
        UserError: no such folder, an unfinished one, vectors of another encoder, or a name that
            the gallery knows of another root's image.
    """
    info = vectors.read_info(folder)
    if not info["complete"]:
        raise UserError(f"{folder} is not complete: run the same `crossreid embed` again")
    if not vectors.part_files(folder):
        raise UserError(f"{folder} holds no vectors: embed again into a new folder")
    facts = Facts(info["fingerprint"], info["space"], info["dim"], info["checkpoint"])
    gallery = Gallery.create(uri, facts, new_encoder=new_encoder)
    if "folder_pids" not in info and info["root"] == info.get("source"):
        _warn_of_other_numbers(folder)
    elsewhere = Elsewhere(gallery, info["root"])
    for path in vectors.part_files(folder):
        for sample in _named(path):
            elsewhere.look(*sample)
    elsewhere.require_none()
    done = Added(0, 0, len(gallery))
    batches = _batches(folder, info)
    rows = next(batches, None)
    while rows is not None:
        following = next(batches, None)
        step = gallery.add(rows, recall=recall, more_follow=following is not None)
        done = Added(done.new + step.new, done.replaced + step.replaced, step.total)
        rows = following
    return done


def add_images(
    uri: str | Path,
    checkpoint: Path,
    source: Source,
    *,
    space: Space = "descriptor",
    new_encoder: bool = False,
    recall: float | None = None,
    **options: Unpack[EmbedOptions],
) -> Added:
    """Embed and add the images that a gallery does not hold, or holds with another content.

    Args:
        uri: folder or URI of the gallery.
        checkpoint: checkpoint folder or run directory.
        source: what to add.
        space: of the vectors.
        new_encoder, recall: see `Gallery.create` and `Gallery.add`.
        options: see `pipelines.retrieval.embed.embed`.

    Raises:
        UserError: another encoder's gallery, a name that it knows of another root's image, or
            what `embed` refuses.
    """
    weights = find(checkpoint)  # once for all: a run that trains on has others later
    loaded = _to_be_asked(weights, space)
    source = source.as_trained(loaded.config.data)
    gallery = _table_for(uri, loaded, checkpoint, space, new_encoder=new_encoder)
    chosen = missing(source, gallery)
    if not chosen.num_listed:
        raise UserError(f"{source.root} holds no images: nothing to add")
    if not len(chosen.keys):
        if recall is not None:
            gallery.keep_indexed(recall)
        return Added(0, 0, len(gallery))
    of_source = gallery.facts.table, repr(source), source.path
    folders = additions.folders(uri, of_source, chosen.keys.tobytes())
    with additions.held(folders) as folder:
        remove_outdated(folder, source.root)
        try:
            done = embed(
                weights,
                chosen,
                folder,
                space=space,
                dtype="float32",
                share_of=chosen.num_listed,
                **options,
            )
        except NotSharedError as error:
            if folder.parent == Path(uri):
                raise
            raise UserError(
                f"several machines embed for {uri}, and the folder {folder.parent} that they would "
                f"write into is not the same on {', '.join(error.addresses)}: `crossreid embed "
                f"{checkpoint} {source.path} VECTORS`, with VECTORS on a shared file system, then "
                f"`crossreid gallery add {uri} VECTORS`"
            ) from error
        for message in done.unreadable[:_SHOWN]:
            log.warning("left out: %s", message)
        added = add_vectors(uri, folder, new_encoder=new_encoder, recall=recall)
        shutil.rmtree(folder)
    return added


def made_for(
    uri: str | Path, checkpoint: Path, *, space: Space = "descriptor", new_encoder: bool = False
) -> Gallery:
    """The gallery's table for the vectors of a checkpoint, made where it is not there.

    Raises:
        UserError: another encoder's gallery, or no checkpoint.
    """
    loaded = _to_be_asked(checkpoint, space)
    return _table_for(uri, loaded, checkpoint, space, new_encoder=new_encoder)


def _to_be_asked(checkpoint: Path, space: Space) -> LoadedEncoder:
    return open_encoder(checkpoint, space=space, device=torch.device("cpu"))


def _table_for(
    uri: str | Path, loaded: LoadedEncoder, checkpoint: Path, space: Space, *, new_encoder: bool
) -> Gallery:
    dim, place = loaded.encoder.feature_dim, str(Path(checkpoint).resolve())
    facts = Facts(loaded.fingerprint, space, dim, place)
    return Gallery.create(uri, facts, new_encoder=new_encoder)


def enroll(
    gallery: Gallery, loaded: LoadedEncoder, name: str, images: Sequence[Path], modality: Modality
) -> Added:
    """Put an identity on the watch list.

    Args:
        gallery: of the encoder.
        loaded: the encoder.
        name: of the identity; one that is stored in another coding of accents is that one.
        images: of it.
        modality: of the images.

    Raises:
        UserError: no name, or an image that cannot be read or is named as no table can hold.
    """
    if not name.strip():
        raise UserError("NAME is empty: say who is on the images")
    name, hashes = spellings(name, gallery.names())[0], []
    for image in images:
        try:
            require_utf8(str(image.resolve()))
            hashes.append(content_hash(read_bytes(image)))
        except OSError as error:
            raise UserError(f"{image}: {reason(error)}; give files of images") from error
        except ValueError as error:
            raise UserError(str(error)) from error
    try:
        rows = loaded.embed_images(list(images), modality=str(modality))
    except ValueError as error:
        raise UserError(f"{error}; give other images of {name}") from error
    samples = [Sample(f"enrolled/{name}/{content}", modality) for content in hashes]
    table = rows_of(samples, rows, root="", contents=hashes, name=name)
    places = pa.array([str(image.resolve()) for image in images], pa.string())
    return gallery.add(table.set_column(table.schema.get_field_index("image"), "image", places))


def rows_of(
    samples: Sequence[Sample],
    rows: np.ndarray,
    *,
    root: str,
    contents: Sequence[str] = (),
    name: str = "",
) -> pa.Table:
    """Rows of a gallery from samples and their vectors (n, D)."""
    count = len(samples)
    columns = {
        "id": [record_id(sample) for sample in samples],
        "content": contents or [""] * count,
        "modality": [str(sample.modality) for sample in samples],
        "camera": [sample.camera for sample in samples],
        "pid": [sample.pid for sample in samples],
        "tracklet": [sample.tracklet for sample in samples],
        "images": [1] * count,
        "time": [sample.time for sample in samples],
        "name": [name] * count,
        "root": [root] * count,
        "image": [sample.image for sample in samples],
    }
    kinds = schema(rows.shape[1])
    table = pa.table({key: pa.array(list(v), kinds.field(key).type) for key, v in columns.items()})
    flat = pa.array(np.ascontiguousarray(rows, dtype=np.float32).ravel())
    return table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]))


def _batches(folder: Path, info: WrittenInfo) -> Iterator[pa.Table]:
    """The parts of a folder, some at a time, as rows of a gallery."""
    waiting: list[pa.Table] = []
    for path in vectors.part_files(folder):
        with _whole(path):
            waiting.append(_as_rows(pq.read_table(path), info))
        if sum(map(len, waiting)) >= _AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _named(path: Path) -> Iterator[tuple[str, str, str]]:
    """Id, content and modality of a part's rows; an older `embed` did not write the content."""
    with _whole(path):
        part = pq.ParquetFile(path).read(["id", "content", "modality"])
        columns = {name: part[name].to_pylist() for name in part.column_names}
        contents = columns.get("content", [""] * len(part))
        yield from zip(columns["id"], contents, columns["modality"], strict=True)


def _warn_of_other_numbers(folder: Path) -> None:
    """Of identities that an older `embed` numbered otherwise than by the names of their folders."""
    for path in vectors.part_files(folder):
        with _whole(path):
            rows = pq.read_table(path, columns=["id", "modality", "pid"]).to_pylist()
        for row in rows:
            name = identity_of(row["id"]) if row["modality"] in row["id"].split("/")[:2] else ""
            if name and row["pid"] not in (-1, pid_of(name)):
                log.warning(
                    "%s is of an older version, which numbered identity %s %d; now it is %d: these "
                    "rows do not agree with those of other sources. Embed again into a new folder",
                    folder,
                    name,
                    row["pid"],
                    pid_of(name),
                )
                return


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged, or not what embedding.json says: embed again into a new folder"
        ) from error


def _as_rows(part: pa.Table, info: WrittenInfo) -> pa.Table:
    """Columns that an older `embed` did not write are unknown."""
    kinds, count = schema(info["dim"]), len(part)
    rows = (
        np.stack(part["vector"].combine_chunks().to_numpy(zero_copy_only=False))
        if count
        else (np.empty((0, info["dim"])))
    )
    rows = rows.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    unknown = {"content": "", "tracklet": -1, "images": 1, "time": None, "name": ""}
    columns: dict[str, pa.Array] = {
        key: part[key].combine_chunks().cast(kinds.field(key).type)
        if key in part.column_names
        else pa.array([unknown[key]] * count, kinds.field(key).type)
        for key in kinds.names
        if key not in ("root", "image", "vector")
    }
    columns["root"] = pa.array([info["root"]] * count, pa.string())
    images = part["image"] if "image" in part.column_names else part["id"]
    modalities = columns["modality"].to_pylist()
    columns["image"] = pa.array(map(image_of, images.to_pylist(), modalities), pa.string())
    flat = pa.array(np.ascontiguousarray(rows).ravel())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, info["dim"])
    return pa.table({key: columns[key] for key in kinds.names})
