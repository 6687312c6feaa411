"""Embedding one part of a source: what an actor of `crossreid embed` does."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipelines.cluster import machine
from pipelines.errors import UserError, for_users
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import vectors
from pipelines.retrieval.sources import Part, record_id
from pipelines.retrieval.vectors import Dtype
from reid_core.models.folding import folded
from reid_core.types import Modality, Sample


@dataclass(frozen=True)
class Work:
    """What an actor must know.

    Attributes:
        checkpoint: folder of it, no run directory: that of a run which trains on moves.
        fingerprint: of the encoder in it.
        space: of the vectors.
        root: folder that the samples' images are relative to.
        out: folder of the parts.
        dtype: of the vectors.
        batch_size: images per forward pass.
    """

    checkpoint: Path
    fingerprint: str
    space: Space
    root: Path
    out: Path
    dtype: Dtype
    batch_size: int


class Embedder:
    """Embeds a part and writes its file; one per GPU, or per few CPUs.

    Args:
        work: see there.
        threads: at most, for decoding and for what is computed on CPU cores.
        device: to compute on, None for a GPU if there is one.

    Raises:
        UserError: no checkpoint there, or one of another encoder.
    """

    def __init__(self, work: Work, threads: int, device: str | None = None) -> None:
        threads = min(threads, machine.cores())  # of its node
        torch.set_num_threads(threads)
        self._work = work
        loaded = _opened(work, torch.device(device) if device else None)
        assert isinstance(loaded.encoder, nn.Module)
        self._loaded = replace(loaded, encoder=folded(loaded.encoder))
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[int] | list[str]]:
        """A row with a part -> a row with counts."""
        (content,) = block["part"]
        embedded, skipped = self.embed(pickle.loads(content))
        return {"embedded": [embedded], "skipped": [json.dumps(skipped)]}

    def embed(self, part: Part) -> tuple[int, list[str]]:
        """Embed what the part's file does not hold.

        Returns:
            Number of vectors that are new, and messages about images that were left out.
        """
        rows: list[Sample] = []
        contents: list[str] = []
        result: list[np.ndarray] = []
        skipped: list[str] = []
        before = vectors.read_part(self._work.out, part.key)
        there = set() if before is None else set(before["id"].to_pylist())
        samples = [sample for sample in part.samples if record_id(sample) not in there]
        for modality in dict.fromkeys(sample.modality for sample in samples):
            own = [sample for sample in samples if sample.modality == modality]
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
        table = vectors.table(rows, np.concatenate([none, *result]), contents=contents)
        if before is not None:
            table = pa.concat_tables([before.cast(table.schema), table])
        vectors.write_part(self._work.out, part.key, table, skipped)
        return len(rows), skipped

    def _read(self, batch: list[Sample]) -> list[Future[tuple[np.ndarray, str]]]:
        return [
            self._pool.submit(self._read_one, self._work.root / sample.image)
            for sample in batch
            if sample.modality != Modality.TEXT
        ]

    def _read_one(self, path: Path) -> tuple[np.ndarray, str]:
        pixels, content = self._loaded.read_image(path)
        return pixels, content_hash(content)

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


def _opened(work: Work, device: torch.device | None) -> LoadedEncoder:
    """The encoder that the command has seen; vectors of two of them are not mixed."""
    try:
        loaded = open_encoder(work.checkpoint, space=work.space, device=device)
        if loaded.fingerprint != work.fingerprint:
            raise UserError(f"{work.checkpoint} holds other weights")
    except UserError as error:
        raise UserError(
            f"on {socket.gethostname()}: {error}. The command began with another state: every "
            "machine must see one folder, and a run that is trained on meanwhile replaces its "
            "checkpoints: name a checkpoint folder that stays (in stages/ of the run), or wait for "
            "its end"
        ) from error
    return loaded


class Actor:
    """An `Embedder` as Ray Data runs it: what users can put right comes back as a row.

    An exception would reach the driver as text, without its class.

    Args:
        work, threads, device: see `Embedder`.
    """

    def __init__(self, work: Work, threads: int, device: str | None = None) -> None:
        self._work, self._refused = work, ""
        try:
            self._embedder = Embedder(work, threads, device)
        except Exception as error:
            self._refused = self._said(error)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[int] | list[str]]:
        """As `Embedder`, with a column that says why nothing was embedded, "" of what was."""
        try:
            if not self._refused:
                return self._embedder(block) | {"refused": [""]}
        except Exception as error:
            self._refused = self._said(error)
        return {"embedded": [0], "skipped": ["[]"], "refused": [self._refused]}

    def _said(self, error: Exception) -> str:
        """What to tell about an error; one that is ours is raised again."""
        if isinstance(error, torch.OutOfMemoryError):
            return (
                f"a GPU of {socket.gethostname()} has too little memory for images of which "
                f"{self._work.batch_size} are embedded at a time: choose a smaller --batch-size, "
                "or see what else is on it (`nvidia-smi`); what is embedded is kept"
            )
        if said := for_users(error):
            return said
        raise error


def content_hash(data: bytes) -> str:
    """What tells an image file from another of the same name."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()
