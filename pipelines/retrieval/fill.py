"""Filling a gallery: from vectors that `embed` wrote, from images, with enrolled identities."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.cluster.preflight import NotSharedError
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import vectors
from pipelines.retrieval.embed import EmbedOptions, embed
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.gallery import Added, Facts, Gallery
from pipelines.retrieval.gallery_rows import schema, state
from pipelines.retrieval.sources import Source, image_of, record_id
from pipelines.retrieval.vectors import WrittenInfo
from pipelines.storage import abandoned
from pipelines.storage.files import reason
from pipelines.storage.shards import read_bytes
from reid_core.types import Modality, Sample

log = logging.getLogger(__name__)
_LOCK = ".lock"
_AT_ONCE = 100_000  # rows of a transaction
_LOOKED_AT = 4096  # images at a time: a pool keeps all that it is given


@dataclass(frozen=True)
class Chosen(Source):
    """The samples of a source whose ids are among some.

    Attributes:
        keys: (n,) uint64, rising: `_key` of the ids, as the ids of millions would be too much to
            send to a task. Of those of one key all are taken: an image too many is no fault.
    """

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)

    def samples(self) -> Iterator[Sample]:
        """In the source's order."""
        return (sample for sample in super().samples() if self._has(_key(record_id(sample))))

    def _has(self, key: int) -> bool:
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return place < len(self.keys) and int(self.keys[place]) == key


def add_vectors(
    uri: str | Path, folder: Path, *, new_encoder: bool = False, recall: float = 0.95
) -> Added:
    """Add what a folder of `crossreid embed` holds.

    Raises:
        UserError: no such folder, an unfinished one, or vectors of another encoder.
    """
    info = vectors.read_info(folder)
    if not info["complete"]:
        raise UserError(f"{folder} is not complete: run the same `crossreid embed` again")
    if not vectors.part_files(folder):
        raise UserError(f"{folder} holds no vectors: embed again into a new folder")
    facts = Facts(info["fingerprint"], info["space"], info["dim"], info["checkpoint"])
    gallery = Gallery.create(uri, facts, new_encoder=new_encoder)
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
    recall: float = 0.95,
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
        UserError: another encoder's gallery, or what `embed` refuses.
    """
    gallery = made_for(uri, checkpoint, space=space, new_encoder=new_encoder)
    missing = _missing(source, gallery.states())
    if not len(missing):
        if not any(True for _ in source.samples()):
            raise UserError(f"{source.root} holds no images: nothing to add")
        return Added(0, 0, len(gallery))
    chosen = Chosen(**{f.name: getattr(source, f.name) for f in fields(Source)}, keys=missing)
    local, prefix = _underway(uri)
    # of the source: images may have come since an interruption. Beside another process that adds
    # from it, of what is missing
    of_source = gallery.facts.table, repr(source), source.path.resolve()
    names = _hash(*of_source), _hash(*of_source, hashlib.blake2b(missing.tobytes()).hexdigest())
    with _held([local / f"{prefix}{name}" for name in names]) as folder:
        try:
            embed(checkpoint, chosen, folder, space=space, dtype="float32", **options)
        except NotSharedError as error:
            if local == Path(uri):
                raise
            raise UserError(
                f"several machines embed for {uri}, and the folder {local} that they would write "
                f"into is not the same on {', '.join(error.addresses)}: `crossreid embed "
                f"{checkpoint} {source.path} VECTORS`, with VECTORS on a shared file system, then "
                f"`crossreid gallery add {uri} VECTORS`"
            ) from error
        done = add_vectors(uri, folder, new_encoder=new_encoder, recall=recall)
        shutil.rmtree(folder)
    return done


def remove_abandoned_additions(uri: str | Path) -> list[Path]:
    """Delete the vectors of additions that were interrupted; those underway stay."""
    local, prefix = _underway(uri)
    removed = []
    for folder in sorted({path.with_suffix("") for path in local.glob(f"{prefix}*")}):
        lock = folder.with_suffix(_LOCK)
        with suppress(OSError), _released(abandoned.hold_file(lock)):
            if folder.is_dir():
                shutil.rmtree(folder)
                removed.append(folder)
            lock.unlink()
    return removed


def _underway(uri: str | Path) -> tuple[Path, str]:
    """Where the vectors of additions lie while they are embedded, and how their names begin."""
    if "://" not in str(uri):
        return Path(uri), ".adding-"
    return Path.home() / ".cache" / "crossreid", f".adding-{_hash(uri)}-"


def _hash(*facts: object) -> str:
    return hashlib.blake2b("\n".join(map(str, facts)).encode(), digest_size=6).hexdigest()


@contextmanager
def _held(folders: Sequence[Path]) -> Iterator[Path]:
    """The first of some folders that no process works in, made where it is not there.

    A file beside it is locked, which other machines see on a shared file system, as they do not
    see the lock of a folder.

    Raises:
        UserError: other processes work in all of them.
    """
    for folder in folders:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(_LOCK)
        try:
            handle = abandoned.hold_file(lock)
        except BlockingIOError:
            continue
        except OSError:
            log.warning("the file system of %s has no locks: add from one process", lock)
            handle = os.open(os.devnull, os.O_RDONLY)
        with _released(handle):
            folder.mkdir(exist_ok=True)
            yield folder
            lock.unlink(missing_ok=True)
        return
    raise UserError(
        f"another process adds the same images (in {folders[-1]}): wait for it, or end it"
    )


@contextmanager
def _released(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


def made_for(
    uri: str | Path, checkpoint: Path, *, space: Space = "descriptor", new_encoder: bool = False
) -> Gallery:
    """The gallery's table for the vectors of a checkpoint, made where it is not there.

    Raises:
        UserError: another encoder's gallery, or no checkpoint.
    """
    loaded = open_encoder(checkpoint, space=space, device=torch.device("cpu"))  # to be asked
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
        name: of the identity.
        images: of it.
        modality: of the images.

    Raises:
        UserError: no name, or an image that cannot be read.
    """
    if not name.strip():
        raise UserError("NAME is empty: say who is on the images")
    hashes = []
    for image in images:
        try:
            hashes.append(content_hash(read_bytes(image)))
        except OSError as error:
            raise UserError(f"{image}: {reason(error)}; give files of images") from error
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
        try:
            waiting.append(_as_rows(pq.read_table(path), info))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{path} is damaged, or not what embedding.json says: embed again into a new folder"
            ) from error
        if sum(map(len, waiting)) >= _AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


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


def _missing(source: Source, known: dict[str, int]) -> np.ndarray:
    """Keys, rising, of ids that are not known with their present image and what is said of it."""
    root = str(source.root)

    def changed(sample: Sample) -> int | None:
        name = record_id(sample)
        if name not in known:
            return _key(name)
        try:
            data = sample.caption.encode() or read_bytes(source.root / sample.image)
        except OSError:
            return _key(name)  # embed names what cannot be read
        now = state(sample, content=content_hash(data), root=root)
        return None if now == known[name] else _key(name)

    keys = (key for key in _in_threads(changed, source.samples()) if key is not None)
    return np.unique(np.fromiter(keys, np.uint64))


def _in_threads(
    look: Callable[[Sample], int | None], samples: Iterable[Sample]
) -> Iterator[int | None]:
    """What is found of each sample, in order; some of them are under way at a time."""
    left = iter(samples)
    with ThreadPoolExecutor(8) as pool:
        while some := list(islice(left, _LOOKED_AT)):
            yield from pool.map(look, some)


def _key(name: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
