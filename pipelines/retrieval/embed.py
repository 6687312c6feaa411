"""Embedding any number of images or sentences into Parquet, streamed through Ray Data.

The source is cut into parts of some hundred samples. One task lists it, a pool of actors holds the
encoder, embeds a part and writes its file whole or not at all. Only counts come back, so that the
driver's memory does not grow with the number of images but by one key per part.

Where a part ends depends on the samples around its end alone. A second run therefore finds the
parts of all that did not change finished, also when images were added or taken away in between. Of
parts in which an image could not be read it embeds those that can be read now.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_args

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayTaskError

from pipelines.cluster import preflight
from pipelines.cluster import session as cluster
from pipelines.config.run import RunConfig
from pipelines.errors import UserError, for_users
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import devices, vectors
from pipelines.retrieval.devices import Place
from pipelines.retrieval.embedder import Actor, Work
from pipelines.retrieval.sources import Source, parts
from pipelines.retrieval.vectors import Dtype, VectorInfo
from pipelines.runs.checkpoint import find
from pipelines.runs.console import console
from pipelines.storage import lock
from reid_core.types import Modality

log = logging.getLogger(__name__)
_SHOWN_EVERY_S = 2.0
_SURVEYS = 5  # of a source that changes meanwhile
_LISTS = 1  # CPU cores of the task that lists the source
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
    gpu: bool | None
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
    share_of: int | None = None,
    gpu: bool | None = None,
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
        share_of: number of images that it is a share of; None for all of the source.
        gpu: True waits for a free GPU, False takes none; None takes those that are free, or else
            CPU cores.
        ray_address: cluster to use, None for one on this machine.

    Raises:
        UserError: nothing to embed, `out` holds other vectors or another process embeds into it,
            too many images cannot be read, no room (see `pipelines.retrieval.devices.place`),
            other weights on another machine, a full disk or GPU.
    """
    _require_sound(dtype, batch_size, max_unreadable)
    # actors have working directories of their own
    checkpoint, out = checkpoint.resolve(), out.resolve()
    weights = find(checkpoint)  # once for all: a run that trains on has others later
    # to be asked, not to embed: GPUs are the actors', or other runs'
    loaded = open_encoder(weights, space=space, device=torch.device("cpu"))
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
    with lock.held(out, "embeds"):
        survey, num_new, seconds = _list(source, loaded, out), 0, 0.0
        allowed = max_unreadable, share_of or survey.num_samples
        if survey.missing or survey.left_out:
            with cluster.session(config := _at_address(loaded.config, ray_address)):
                where = _place(config, out, gpu)
                work = Work(weights, loaded.fingerprint, space, source.root, out, dtype, batch_size)
                survey, num_new, seconds = _embed_all(work, source, loaded, survey, allowed, where)
        _require_readable(survey.skipped, *allowed)
        num_vectors = vectors.finish(out, survey.planned, survey.skipped)
    return Embedded(num_vectors, num_new, tuple(survey.skipped), seconds)


def _require_sound(dtype: str, batch_size: int, max_unreadable: float) -> None:
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype={dtype!r}: choose {' or '.join(get_args(Dtype))}")
    if batch_size < 1 or not 0 <= max_unreadable <= 1:
        raise UserError(
            f"batch_size={batch_size}, max_unreadable={max_unreadable}: at least 1, and a share"
        )


def _place(config: RunConfig, out: Path, gpu: bool | None) -> Place:
    """Where the actors run; settled once, as what they give back is not seen as free at once."""
    preflight.require_shared(out)  # each node writes its parts into it
    return devices.place(config, "embedding", gpu=gpu, beside=_LISTS)


def _require_readable(skipped: list[str], max_unreadable: float, num_samples: int) -> None:
    if len(skipped) <= max_unreadable * num_samples:
        return
    first = "\n  ".join(skipped[:10])
    raise UserError(
        f"{len(skipped)} images cannot be read, more than --max-unreadable {max_unreadable:g} of "
        f"{num_samples} allows:\n  {first}\nreplace them, or raise the limit to go on without them"
    )


def _embed_all(
    work: Work,
    source: Source,
    loaded: LoadedEncoder,
    survey: _Survey,
    allowed: tuple[float, int],
    where: Place,
) -> tuple[_Survey, int, float]:
    """Embed until the folder holds every part of one survey.

    The task of Ray lists the source again, and a part in which an image came or went since the
    survey is another one there: it is not embedded, and the source is surveyed anew.

    Args:
        work: for the actors.
        source: that the parts are of.
        loaded: the encoder.
        survey: of the source, what is missing among it.
        allowed: share of the images that may be left out, and their number.
        where: the actors run.

    Returns:
        The last survey, number of vectors of this run, and seconds.

    Raises:
        UserError: too many images cannot be read, or the source does not come to rest.
    """
    num_new, seconds = 0, 0.0
    share, number = allowed
    wanted, skipped = survey.missing | survey.left_out, list[str]()
    for _ in range(_SURVEYS):
        new, took = _embed_missing(work, source, wanted, skipped, where, limit=share * number)
        num_new, seconds = num_new + new, seconds + took
        _require_readable(skipped, *allowed)
        survey = _Survey.of(survey.planned, work.out)
        if not survey.missing:
            return survey, num_new, seconds
        log.warning("%s has changed while it was embedded: it is listed again", source.path)
        survey = _list(source, loaded, work.out)
        if not survey.missing:  # what is new there has gone again
            return survey, num_new, seconds
        wanted, skipped = survey.missing, survey.skipped
    raise UserError(
        f"{source.path} has changed {_SURVEYS} times while it was embedded, and "
        f"{sum(survey.missing.values()):,} images are not embedded yet: run the same command "
        "again when nothing is written there; what is embedded is kept"
    )


def _embed_missing(
    work: Work,
    source: Source,
    missing: dict[str, int],
    skipped: list[str],
    where: Place,
    *,
    limit: float,
) -> tuple[int, float]:
    """Embed parts, show how it goes, stop where too many images cannot be read.

    Args:
        work: for the actors.
        source: that the parts are of.
        missing: rows to embed of each part.
        skipped: messages about unreadable images; grows.
        where: the actors run.
        limit: of their number.

    Returns:
        Number of vectors, and seconds.
    """
    began, shown, num_new = time.perf_counter(), 0.0, 0
    total = sum(missing.values())
    for result in _run(work, source, frozenset(missing), where):
        skipped += json.loads(result["skipped"])
        num_new += int(result["embedded"])
        if num_new == total or time.perf_counter() - shown > _SHOWN_EVERY_S:
            shown = time.perf_counter()
            _show(num_new, total, len(skipped), began)
        if len(skipped) > limit:
            break
    return num_new, time.perf_counter() - began


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
            wanted = set(missing)
            for part in parts(source.samples()):
                if part.key in wanted:
                    wanted.remove(part.key)
                    yield pa.table({"part": pa.array([pickle.dumps(part)], pa.binary())})

        return [ReadTask(read, BlockMetadata(len(missing), None, None))]


def _run(
    work: Work, source: Source, missing: frozenset[str], where: Place
) -> Iterator[dict[str, Any]]:
    """A row of counts per part, as it is embedded.

    Raises:
        UserError: what an actor, or the task that lists the source, met and users can put right.
    """
    num_actors = where.gpus or max(1, min(where.cores // _CPUS_PER_ACTOR, len(missing)))
    threads = max(1, where.cores // num_actors)
    parts_stream = ray.data.read_datasource(_PartsSource(source, missing), override_num_blocks=1)
    # Ray Data would join small rows to large blocks, and one actor would get them all.
    parts_stream.context.target_max_block_size = 1
    results = parts_stream.map_batches(
        Actor,
        fn_constructor_args=(work, threads, where.device),
        batch_size=1,
        concurrency=num_actors,
        num_gpus=where.gpu_share,
        num_cpus=1,
    )
    try:
        for row in results.iter_rows():
            if row["refused"]:
                raise UserError(row["refused"])
            yield row
    except RayTaskError as error:  # of the task that lists
        if isinstance(error.cause, Exception) and (said := for_users(error.cause)):
            raise UserError(said) from error
        raise


@dataclass(frozen=True)
class _Survey:
    """What a source holds, and what a folder has of it.

    Attributes:
        planned: rows of each part.
        finished: of each part that is there, messages about images that were left out.
    """

    planned: dict[str, int]
    finished: dict[str, list[str]]

    @classmethod
    def of(cls, planned: dict[str, int], out: Path) -> _Survey:
        """What the folder has now."""
        there = {key: got for key in planned if (got := vectors.skipped(out, key)) is not None}
        return cls(planned, there)

    @property
    def num_samples(self) -> int:
        """Of all parts."""
        return sum(self.planned.values())

    @property
    def missing(self) -> dict[str, int]:
        """Rows of each part that is not there."""
        return {key: rows for key, rows in self.planned.items() if key not in self.finished}

    @property
    def left_out(self) -> dict[str, int]:
        """Images that could not be read, of each part that is there and has some."""
        return {key: len(messages) for key, messages in self.finished.items() if messages}

    @property
    def skipped(self) -> list[str]:
        """Messages of all parts that are there."""
        return [message for messages in self.finished.values() for message in messages]


def _list(source: Source, loaded: LoadedEncoder, out: Path) -> _Survey:
    """List a source; checks the modalities."""
    planned: dict[str, int] = {}
    for part in parts(source.samples()):
        planned[part.key] = len(part.samples)
        unknown = {sample.modality for sample in part.samples} - set(loaded.modalities)
        if unknown:
            raise UserError(
                f"{source.path} holds {', '.join(sorted(unknown))} rows, this encoder embeds "
                f"{', '.join(loaded.modalities)}"
                + (": for sentences say --space joint" if unknown == {Modality.TEXT} else "")
            )
    if not planned:
        raise UserError(f"{source.path} holds no images: nothing to embed")
    return _Survey.of(planned, out)


def _show(done: int, total: int, num_skipped: int, began: float) -> None:
    rate = done / max(time.perf_counter() - began, 1e-9)
    left = f", {(total - done) / rate:,.0f} s left" if rate else ""
    unreadable = f", {num_skipped} unreadable" if num_skipped else ""
    console.print(f"{done:,} of {total:,}, {rate:,.0f} per second{left}{unreadable}")


def _at_address(config: RunConfig, address: str | None) -> RunConfig:
    settings = config.ray.model_copy(update={"address": address})
    return config.model_copy(update={"ray": settings})
