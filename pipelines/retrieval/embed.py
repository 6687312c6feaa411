"""Embedding any number of images or sentences into Parquet, streamed through Ray Data.

The source is cut into parts of some hundred samples. One task lists it, a pool of actors holds the
encoder, embeds a part and writes its file whole or not at all. Only counts come back, so that the
driver's memory does not grow with the number of images but by one key per part.

Where a part ends depends on the samples around its end alone. A second run therefore finds the
parts of all that did not change finished, also when images were added or taken away in between.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, get_args

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from torch import nn

from pipelines.cluster import machine, preflight
from pipelines.cluster import session as cluster
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import vectors
from pipelines.retrieval.sources import Part, Source, parts
from pipelines.retrieval.vectors import Dtype, VectorInfo
from pipelines.runs.console import console
from pipelines.storage.files import reason
from pipelines.storage.shards import location, read_bytes
from reid_core.images import decode
from reid_core.models.folding import folded
from reid_core.types import Modality, Sample

_SHOWN_EVERY_S = 2.0
_CPUS_PER_ACTOR = 4  # beyond that the convolutions of one small batch do not get faster


@dataclass(frozen=True)
class Embedded:
    """What a run of `embed` did.

    Attributes:
        num_vectors: in the folder, all runs together.
        num_new: embedded by this run.
        unreadable: messages about images that were left out, all runs together.
        seconds: this run took, without starting Ray and loading the encoder.
    """

    num_vectors: int
    num_new: int
    unreadable: tuple[str, ...]
    seconds: float


class EmbedOptions(TypedDict, total=False):
    """Keywords of `embed` that others hand on."""

    batch_size: int
    max_unreadable: float
    ray_address: str | None


def embed(
    checkpoint: Path,
    source: Source,
    out: Path,
    *,
    space: Space = "descriptor",
    dtype: Dtype = "float16",
    batch_size: int = 64,
    max_unreadable: float = 0.01,
    ray_address: str | None = None,
) -> Embedded:
    """Embed what a folder does not hold yet.

    Args:
        checkpoint: checkpoint folder or run directory.
        source: what to embed.
        out: folder of Parquet files see `pipelines.retrieval.vectors`.
        space: of the vectors, see `pipelines.evaluation.encoder.open_encoder`.
        dtype: of the vectors.
        batch_size: images per forward pass.
        max_unreadable: share of the images that may be left out.
        ray_address: cluster to use, None for one on this machine.

    Raises:
        UserError: nothing to embed, `out` holds other vectors, too many images cannot be read.
    """
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype={dtype!r}: choose {' or '.join(get_args(Dtype))}")
    if batch_size < 1 or not 0 <= max_unreadable <= 1:
        raise UserError(
            f"batch_size={batch_size}, max_unreadable={max_unreadable}: at least 1, and a share"
        )
    # actors have working directories of their own
    checkpoint, out = checkpoint.resolve(), out.resolve()
    loaded = open_encoder(checkpoint, space=space)
    source = source.as_trained(loaded.config.data)
    info = VectorInfo(
        fingerprint=loaded.fingerprint,
        space=space,
        dtype=dtype,
        dim=loaded.encoder.feature_dim,
        root=str(source.root),
        source=str(source.path),
    )
    vectors.claim(out, info, checkpoint)
    planned, num_samples = _survey(source, loaded)
    finished = {key: got for key in planned if (got := vectors.skipped(out, key)) is not None}
    skipped = [message for messages in finished.values() for message in messages]
    limit = max_unreadable * num_samples
    missing = {key: rows for key, rows in planned.items() if key not in finished}
    num_new, seconds = 0, 0.0
    if missing:
        with cluster.session(_at_address(loaded.config, ray_address)):
            work = _Work(checkpoint, space, source.root, out, dtype, batch_size)
            num_new, seconds = _embed_missing(work, source, missing, skipped, limit=limit)
    if len(skipped) > limit:
        raise _too_many(skipped, max_unreadable, num_samples)
    vectors.finish(out, planned, skipped, num_samples - len(skipped))
    return Embedded(num_samples - len(skipped), num_new, tuple(skipped), seconds)


def _too_many(skipped: list[str], max_unreadable: float, num_samples: int) -> UserError:
    first = "\n  ".join(skipped[:10])
    return UserError(
        f"{len(skipped)} images cannot be read, more than --max-unreadable {max_unreadable:g} of "
        f"{num_samples} allows:\n  {first}\nreplace them, or raise the limit to go on without them"
    )


def _embed_missing(
    work: _Work, source: Source, missing: dict[str, int], skipped: list[str], *, limit: float
) -> tuple[int, float]:
    """Embed parts, show how it goes, stop where too many images cannot be read.

    Args:
        work: for the actors.
        source: that the parts are of.
        missing: rows of each part to embed.
        skipped: messages about unreadable images; grows.
        limit: of their number.

    Returns:
        Number of vectors, and seconds.
    """
    began, shown, num_new = time.perf_counter(), 0.0, 0
    total = sum(missing.values())
    for result in _run(work, source, frozenset(missing)):
        skipped += json.loads(result["skipped"])
        num_new += int(result["embedded"])
        if num_new == total or time.perf_counter() - shown > _SHOWN_EVERY_S:
            shown = time.perf_counter()
            _show(num_new, total, len(skipped), began)
        if len(skipped) > limit:
            break
    return num_new, time.perf_counter() - began


class Embedder:
    """Embeds a part and writes its file; one per GPU, or per few CPUs."""

    def __init__(self, work: _Work, threads: int) -> None:
        threads = min(threads, machine.cores())  # of its node
        torch.set_num_threads(threads)
        self._work = work
        loaded = open_encoder(work.checkpoint, space=work.space)
        assert isinstance(loaded.encoder, nn.Module)
        self._loaded = replace(loaded, encoder=folded(loaded.encoder))
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[int] | list[str]]:
        """A row with a part -> a row with counts."""
        (content,) = block["part"]
        embedded, skipped = self.embed(pickle.loads(content))
        return {"embedded": [embedded], "skipped": [json.dumps(skipped)]}

    def embed(self, part: Part) -> tuple[int, list[str]]:
        """Number of vectors written, and messages about images that were left out."""
        rows: list[Sample] = []
        contents: list[str] = []
        result: list[np.ndarray] = []
        skipped: list[str] = []
        for modality in dict.fromkeys(sample.modality for sample in part.samples):
            own = [sample for sample in part.samples if sample.modality == modality]
            step = self._work.batch_size
            batches = [own[i : i + step] for i in range(0, len(own), step)]
            ahead = [self._read(batch) for batch in batches[:2]]
            for number, batch in enumerate(batches):
                inputs, remaining, hashes = self._collect(batch, ahead[number], skipped)
                ahead[number] = []  # frees the images
                if number + 2 < len(batches):
                    ahead.append(self._read(batches[number + 2]))
                if remaining:
                    rows += remaining
                    contents += hashes
                    result.append(self._loaded.vectors(inputs, modality).astype(self._work.dtype))
        none = np.empty((0, self._loaded.encoder.feature_dim), dtype=self._work.dtype)
        vectors.write_part(
            self._work.out,
            part.key,
            rows,
            np.concatenate([none, *result]),
            skipped,
            contents=contents,
        )
        return len(rows), skipped

    def _read(self, batch: list[Sample]) -> list[Future[tuple[np.ndarray, str]]]:
        size = self._loaded.config.model
        return [
            self._pool.submit(
                _pixels_and_hash,
                self._work.root / sample.image,
                height=size.height,
                width=size.width,
            )
            for sample in batch
            if sample.modality != Modality.TEXT
        ]

    def _collect(
        self,
        batch: list[Sample],
        images: list[Future[tuple[np.ndarray, str]]],
        skipped: list[str],
    ) -> tuple[torch.Tensor, list[Sample], list[str]]:
        if not images:
            assert self._loaded.tokenize is not None
            sentences = [sample.caption for sample in batch]
            return (
                self._loaded.tokenize(sentences),
                batch,
                [content_hash(s.encode()) for s in sentences],
            )
        pixels, remaining, hashes = [], [], []
        for sample, image in zip(batch, images, strict=True):
            try:
                decoded, content = image.result()
            except ValueError as error:
                skipped.append(str(error))
            else:
                pixels.append(decoded)
                remaining.append(sample)
                hashes.append(content)
        inputs = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)
        return inputs, remaining, hashes


def content_hash(data: bytes) -> str:
    """What tells an image file from another of the same name."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _pixels_and_hash(path: Path, *, height: int, width: int) -> tuple[np.ndarray, str]:
    """A decoded image, and the hash of its file.

    Raises:
        ValueError: it cannot be read or decoded; names the file.
    """
    try:
        data = read_bytes(path)
        return decode(data, height=height, width=width), content_hash(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"{location(path)}: {reason(error)}") from error


@dataclass(frozen=True)
class _Work:
    """What an actor must know."""

    checkpoint: Path
    space: Space
    root: Path
    out: Path
    dtype: Dtype
    batch_size: int


class _PartsSource(Datasource):
    """One task that lists a source and yields a row per part that is missing."""

    def __init__(self, source: Source, missing: frozenset[str]) -> None:
        self._source, self._missing = source, missing

    def get_name(self) -> str:
        """Shown on the Ray dashboard."""
        return "Parts"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown; small."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """One lazy task."""
        source, missing = self._source, self._missing

        def read() -> Iterator[pa.Table]:
            for part in parts(source.samples()):
                if part.key in missing:
                    yield pa.table({"part": pa.array([pickle.dumps(part)], pa.binary())})

        return [ReadTask(read, BlockMetadata(len(missing), None, None))]


def _run(work: _Work, source: Source, missing: frozenset[str]) -> Iterator[dict[str, Any]]:
    preflight.require_shared(work.out)  # each node writes its parts into it
    gpus, cpus = cluster.num_gpus(), int(ray.cluster_resources().get("CPU", 1))
    num_actors = gpus or max(1, min(cpus // _CPUS_PER_ACTOR, len(missing)))
    threads = max(1, cpus // num_actors)
    parts_stream = ray.data.read_datasource(_PartsSource(source, missing), override_num_blocks=1)
    # Ray Data would join small rows to large blocks, and one actor would get them all.
    parts_stream.context.target_max_block_size = 1
    results = parts_stream.map_batches(
        Embedder,
        fn_constructor_args=(work, threads),
        batch_size=1,
        concurrency=num_actors,
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    yield from results.iter_rows()


def _survey(source: Source, loaded: LoadedEncoder) -> tuple[dict[str, int], int]:
    """Rows of each part, and of all; checks the modalities."""
    planned: dict[str, int] = {}
    num_samples = 0
    for part in parts(source.samples()):
        planned[part.key] = len(part.samples)
        num_samples += len(part.samples)
        unknown = {sample.modality for sample in part.samples} - set(loaded.modalities)
        if unknown:
            raise UserError(
                f"{source.path} holds {', '.join(sorted(unknown))} rows, this encoder embeds "
                f"{', '.join(loaded.modalities)}"
                + (": for sentences say --space joint" if unknown == {Modality.TEXT} else "")
            )
    if not num_samples:
        raise UserError(f"{source.path} holds no images: nothing to embed")
    return planned, num_samples


def _show(done: int, total: int, num_skipped: int, began: float) -> None:
    rate = done / max(time.perf_counter() - began, 1e-9)
    left = f", {(total - done) / rate:,.0f} s left" if rate else ""
    unreadable = f", {num_skipped} unreadable" if num_skipped else ""
    console.print(f"{done:,} of {total:,}, {rate:,.0f} per second{left}{unreadable}")


def _at_address(config: RunConfig, address: str | None) -> RunConfig:
    settings = config.ray.model_copy(update={"address": address})
    return config.model_copy(update={"ray": settings})
