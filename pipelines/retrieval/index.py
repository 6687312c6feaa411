"""A searchable index over embeddings: exact while that is fast, IVF-PQ with exact re-scoring above.

Shapes: N vectors, D their width, Q queries, k answers.

An index is a folder: vectors.npy (N, D) and rows.arrow (id, modality, camera, pid), both mapped
into memory rather than read, index.json, and ivfpq.faiss where the search is approximate.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.retrieval import ivfpq, vectors
from pipelines.retrieval.ivfpq import Found
from pipelines.storage.files import write_json
from reid_core.knn.products import faiss, largest_products
from reid_core.types import Modality

INFO, VECTORS, ROWS, CODES = "index.json", "vectors.npy", "rows.arrow", "ivfpq.faiss"
FORMAT = 1
EXACT_UP_TO = 100_000  # 100,000 x 512 products take some 10 ms on one core
_GATHERED = 20_000  # rows that a filter may leave to be multiplied exactly
_INSTALL = 'pip install -c constraints.txt -e ".[cpu]"'


@dataclass(frozen=True)
class Built:
    """What `build` did.

    Attributes:
        num_vectors, dim: N and D.
        kind: "flat" or "ivfpq".
        recall: share of the ten nearest rows that a search finds; 1 for "flat".
        seconds: taken in all.
        memory_mb: peak resident memory of this process, mapped pages of the index included.
        disk_mb: size of the index.
    """

    num_vectors: int
    dim: int
    kind: str
    recall: float
    seconds: float
    memory_mb: float
    disk_mb: float


def build(
    embeddings: Path,
    out: Path,
    *,
    exact_up_to: int = EXACT_UP_TO,
    recall: float = 0.95,
    seed: int = 0,
) -> Built:
    """Index the vectors of a folder that `crossreid embed` wrote.

    Args:
        embeddings: that folder.
        out: folder of the index; an older index there is replaced.
        exact_up_to: largest number of vectors that is searched exactly.
        recall: at ten answers that the approximate search is tuned to.
        seed: of k-means and of the sample.

    Raises:
        UserError: no or unfinished embeddings, nothing to index, `out` cannot be written, or faiss
            is missing above `exact_up_to`.
    """
    began = time.perf_counter()
    info = vectors.read_info(embeddings)
    if not info["complete"]:
        raise UserError(f"{embeddings} is not complete: run the same `crossreid embed` again")
    if not info["num_vectors"]:
        raise UserError(f"{embeddings} holds no vectors: nothing to index")
    approximate = info["num_vectors"] > exact_up_to
    if approximate and faiss is None:
        raise UserError(
            f"{info['num_vectors']} vectors are more than --exact-up-to {exact_up_to}, and the "
            f"approximate search needs faiss: {_INSTALL}"
        )
    _empty(out)
    _copy(embeddings, out, num_rows=info["num_vectors"], dim=info["dim"], dtype=info["dtype"])
    content = {key: info[key] for key in ("fingerprint", "space", "checkpoint", "root", "dim")}
    content |= {"format": FORMAT, "kind": "ivfpq" if approximate else "flat", "recall": 1.0}
    if approximate:
        stored = np.load(out / VECTORS, mmap_mode="r")
        trained = ivfpq.train(stored, seed=seed)
        faiss.write_index(trained, str(out / CODES))
        content |= ivfpq.tune(trained, stored, _modalities(out), target=recall, seed=seed)
    write_json(out / INFO, content)
    return Built(
        num_vectors=info["num_vectors"],
        dim=info["dim"],
        kind=content["kind"],
        recall=content["recall"],
        seconds=time.perf_counter() - began,
        memory_mb=_peak_memory_mb(),
        disk_mb=sum(file.stat().st_size for file in out.iterdir()) / 2**20,
    )


class Index:
    """An opened index.

    Attributes:
        info: content of index.json.
        ids: (N,) string column.
        modalities: (N,) of `Modality` values, strings.
        cameras: (N,) int32. pids: (N,) int64; -1 where unknown in both.
    """

    def __init__(self, folder: Path) -> None:
        """Maps the files into memory.

        Raises:
            UserError: no index there, a damaged one, or one of another format.
        """
        path = folder / INFO
        if not path.is_file():
            raise UserError(f"{folder} holds no index: make one with `crossreid index`")
        try:
            self.info: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; index again") from error
        if self.info.get("format") != FORMAT:
            raise UserError(f"{path} has format {self.info.get('format')}, expected {FORMAT}")
        self._vectors: np.ndarray = np.load(folder / VECTORS, mmap_mode="r")
        rows = _rows(folder)
        self.ids: pa.ChunkedArray = rows["id"]
        self.modalities: pa.ChunkedArray = rows["modality"]
        self.cameras: np.ndarray = rows["camera"].to_numpy()
        self.pids: np.ndarray = rows["pid"].to_numpy()
        self._codes = None
        if self.info["kind"] == "ivfpq":
            if faiss is None:
                raise UserError(f"this index is approximate and needs faiss: {_INSTALL}")
            self._codes = faiss.read_index(str(folder / CODES))

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32 of some rows."""
        return self._vectors[rows].astype(np.float32)

    def find(self, name: str) -> int:
        """Row of an id, -1 where there is none."""
        return int(pc.index(self.ids, name).as_py())

    def mask(
        self, *, modality: Modality | None = None, cameras: Sequence[int] = ()
    ) -> np.ndarray | None:
        """(N,) bool, the rows that a filter leaves; None where there is no filter.

        Raises:
            UserError: no row is left; names what there is.
        """
        if modality is None and not cameras:
            return None
        kept = np.ones(len(self), dtype=bool)
        if modality is not None:
            kept &= self._is_modality(str(modality))
        if cameras:
            kept &= np.isin(self.cameras, cameras)
        if not kept.any():
            there = ", ".join(map(str, np.unique(self.cameras)))
            raise UserError(
                f"no vector has modality {modality or 'any'} and camera "
                f"{', '.join(map(str, cameras)) or 'any'}; this index has "
                f"{' and '.join(self.modalities.unique().to_pylist())} of cameras {there}"
            )
        return kept

    def search(self, queries: np.ndarray, k: int, *, mask: np.ndarray | None = None) -> Found:
        """The k nearest rows by cosine.

        Args:
            queries: (Q, D) unit rows.
            k: answers per query.
            mask: (N,) bool, rows that may be answers; None for all.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        allowed = len(self) if mask is None else int(mask.sum())
        if self._codes is None or allowed <= _GATHERED:
            return self._exact(queries, k, mask)
        candidates = ivfpq.candidates(
            self._codes,
            queries,
            max(self.info["candidates"], k),
            num_probes=self.info["num_probes"],
            mask=mask,
        )
        return ivfpq.rescored(queries, self._vectors, candidates, k)

    def _exact(self, queries: np.ndarray, k: int, mask: np.ndarray | None) -> Found:
        rows = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        among = self._all if mask is None else self.vectors(rows)
        nearest = largest_products(queries, among, min(k, len(rows))).rows
        return ivfpq.rescored(queries, self._vectors, rows[nearest], k)

    @cached_property
    def _all(self) -> np.ndarray:
        return self._vectors.astype(np.float32)

    def _is_modality(self, name: str) -> np.ndarray:
        return np.asarray(pc.equal(self.modalities, name).to_numpy(), dtype=bool)


def _empty(out: Path) -> None:
    """A folder without an index; what an older one was opened by goes first."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (INFO, CODES):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error


def _copy(embeddings: Path, out: Path, *, num_rows: int, dim: int, dtype: str) -> None:
    """Parquet parts -> one array on disk and one table beside it, a part at a time."""
    target = np.lib.format.open_memmap(
        out / VECTORS, mode="w+", dtype=np.dtype(dtype), shape=(num_rows, dim)
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("modality", pa.string()),
            ("camera", pa.int32()),
            ("pid", pa.int64()),
        ]
    )
    filled = 0
    with pa.OSFile(str(out / ROWS), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for path in vectors.part_files(embeddings):
            part = pq.read_table(path)
            found = part["vector"].combine_chunks().flatten().to_numpy()
            target[filled : filled + len(part)] = found.reshape(-1, dim)
            filled += len(part)
            writer.write_table(part.select(schema.names).cast(schema))
    if filled != num_rows:
        raise UserError(f"{embeddings} holds {filled} vectors instead of {num_rows}: embed again")
    target.flush()


def _rows(folder: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(folder / ROWS))).read_all()


def _modalities(folder: Path) -> np.ndarray:
    return _rows(folder)["modality"].to_numpy()


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
