"""One query against a million vectors: the gallery against faiss, and exact search.

Clustered vectors, as identities are: a center per identity and noise per image. Queries are rows of
their own that the index does not hold. The rival in the same run is faiss's exact search over
float32 rows in memory, which every answer is compared with.

    python -m benchmarks.search                       1,000,000 x 512, what docs/benchmarks.md shows
    python -m benchmarks.search --vectors 50000       seconds
    python -m benchmarks.search --folder F --only faiss      one side; what is measured stays in F
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

from pipelines.retrieval import fill, vectors
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter
from reid_core.knn.products import largest_products
from reid_core.types import Modality, Sample

_PART = 16_384
_AT = 10
_RECALL = 0.95
_TIMED_EXACTLY = 100  # queries; each takes as long as the others


def main() -> None:
    """Write vectors, index them, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--identities", type=int, help="default: one per 20 vectors")
    parser.add_argument("--noise", type=float, default=1.0, help="length, against a center of 1")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--only", choices=["exact", *_SIDES], help="measure this side alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.folder or Path(folder)
        world = World(
            identities=args.identities or max(args.vectors // 20, 1),
            dim=args.dim,
            noise=args.noise,
            seed=args.seed,
        )
        if not (root / "embeddings").is_dir():
            write(root / "embeddings", world, args.vectors)
        queries = world.rows(args.queries, part=-1)
        known = root / "measured.json"
        rows = json.loads(known.read_text()) if known.is_file() else {}
        if not (root / "truth.npy").is_file():
            truth, exact = exact_search(stored_rows(root / "embeddings"), queries)
            rows["exact"] = ["exact, in memory", "-", "-", *exact, "1.000", "-"]
            np.save(root / "truth.npy", truth)
        truth = np.load(root / "truth.npy")
        for name in _SIDES:
            if args.only in (None, name):
                rows[name] = in_a_process(name, root, queries, truth, world)
                known.write_text(json.dumps(rows))
        print("| | built s | memory MB | median ms | p95 ms | recall@10 | visible only, p95 ms |")
        print("|---|---|---|---|---|---|---|")
        for row in rows.values():
            print("| " + " | ".join(row) + " |")


def in_a_process(
    name: str, root: Path, queries: np.ndarray, truth: np.ndarray, world: World
) -> list[str]:
    """A line of the table, measured in a process of its own: peak memory is a process's."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_SIDES[name], (root, queries, truth, world))


class World:
    """Identities as centers on the sphere, images as noisy copies of them."""

    def __init__(self, *, identities: int, dim: int, noise: float, seed: int) -> None:
        self._identities, self._dim, self._noise, self._seed = identities, dim, noise, seed

    def rows(self, count: int, *, part: int) -> np.ndarray:
        """(count, D) unit rows; equal parts are equal."""
        rng = np.random.default_rng((self._seed, part + 1))
        pids = rng.integers(0, self._identities, count)
        noise = rng.normal(size=(count, self._dim)) * (self._noise / self._dim**0.5)
        rows = self._centers(pids) + noise
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _centers(self, pids: np.ndarray) -> np.ndarray:
        """An identity's center is drawn from its number, so that no table of centers is kept."""
        distinct, places = np.unique(pids, return_inverse=True)
        centers = np.stack(
            [np.random.default_rng((self._seed, 0, pid)).normal(size=self._dim) for pid in distinct]
        )
        return (centers / np.linalg.norm(centers, axis=1, keepdims=True))[places]


def write(out: Path, world: World, count: int) -> None:
    """The vectors as `crossreid embed` writes them, half of them infrared."""
    dim = world.rows(1, part=0).shape[1]
    info = vectors.VectorInfo("benchmark", "descriptor", "float16", dim, str(out), str(out))
    vectors.claim(out, info, out)
    planned = []
    for part, start in enumerate(range(0, count, _PART)):
        size = min(_PART, count - start)
        modality = (Modality.VISIBLE, Modality.INFRARED)
        rows = [Sample(f"{start + i}.jpg", modality[i % 2], -1, i % 6) for i in range(size)]
        result = world.rows(size, part=part).astype(np.float16)
        vectors.write_part(out, f"{part:06d}", vectors.table(rows, result))
        planned.append(f"{part:06d}")
    vectors.finish(out, planned, [])


def stored_rows(folder: Path) -> np.ndarray:
    """(N, D) float16 of all parts, in order."""
    parts = [pq.read_table(path, columns=["vector"]) for path in vectors.part_files(folder)]
    rows = [part["vector"].combine_chunks().flatten().to_numpy() for part in parts]
    dim = parts[0].schema.field("vector").type.list_size
    return np.concatenate(rows).reshape(-1, dim)


def exact_search(stored: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The ten nearest rows (Q, 10) of each query, and median and p95 of the time of one."""
    rows = stored.astype(np.float32)
    truth, times = largest_products(queries, rows, _AT).rows, []
    for query in queries[:_TIMED_EXACTLY, None]:
        began = time.perf_counter()
        largest_products(query, rows, _AT)
        times.append(time.perf_counter() - began)
    return truth, _milliseconds(times)


def faiss_side(root: Path, queries: np.ndarray, truth: np.ndarray, _: World) -> list[str]:
    """The rival: IVF-PQ with a byte per eight dimensions, whose candidates are multiplied exactly.

    As many lists and candidates as reach the recall that the gallery is tuned to, on the queries
    themselves: better than a user could do.
    """
    stored = stored_rows(root / "embeddings")
    began = time.perf_counter()
    dim = stored.shape[1]
    lists = 2 ** round(math.log2(math.sqrt(len(stored))))
    index = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 8}np", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    count = min(len(stored), 64 * lists)
    index.train(stored[rng.choice(len(stored), count, replace=False)].astype(np.float32))
    for start in range(0, len(stored), 65_536):
        index.add(stored[start : start + 65_536].astype(np.float32))
    built = time.perf_counter() - began
    probes, candidates, recall = 4, 100, 0.0
    while recall < _RECALL and probes < lists:
        probes *= 2
        recall = _hits(_ask_faiss(index, stored, queries, probes, candidates)[0], truth)
    times = _ask_faiss(index, stored, queries, probes, candidates)[1]
    visible = np.arange(len(stored)) % 2 == 0
    filtered = _ask_faiss(index, stored, queries, probes, candidates, visible)[1]
    return [
        f"faiss IVF-PQ, {probes} lists",
        f"{built:.0f}",
        f"{_peak_mb():,.0f}",
        *_milliseconds(times),
        f"{recall:.3f}",
        _milliseconds(filtered)[1],
    ]


def _ask_faiss(
    index: Any,
    stored: np.ndarray,
    queries: np.ndarray,
    probes: int,
    candidates: int,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, list[float]]:
    answers, times = [], []
    for query in queries[:, None]:
        began = time.perf_counter()
        options: dict[str, Any] = {"nprobe": probes}
        if mask is not None:
            options["sel"] = faiss.IDSelectorBitmap(  # type: ignore[call-arg]  # takes an array
                np.packbits(mask, bitorder="little")
            )
        parameters = faiss.SearchParametersIVF(**options)
        rows = np.sort(index.search(query, candidates, params=parameters)[1][0])
        rows = rows[rows >= 0]
        products = stored[rows].astype(np.float32) @ query[0]
        answers.append(rows[np.argsort(-products, kind="stable")[:_AT]])
        times.append(time.perf_counter() - began)
    return np.stack(answers), times


def gallery_side(root: Path, queries: np.ndarray, truth: np.ndarray, world: World) -> list[str]:
    """Ours: stored, indexed and tuned by `add_vectors`; then it grows and shrinks."""
    began = time.perf_counter()
    fill.add_vectors(root / "gallery", root / "embeddings", recall=_RECALL)
    built, peak = time.perf_counter() - began, _peak_mb()
    gallery = Gallery.open(root / "gallery")
    answers, times, filtered = [], [], []
    for query in queries:
        began = time.perf_counter()
        answers.append([int(hit.id.partition(".")[0]) for hit in gallery.search(query, _AT)])
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        gallery.search(query, _AT, where=Filter(modality=Modality.VISIBLE))
        filtered.append(time.perf_counter() - began)
    how = gallery.tuning
    line = [
        f"gallery, {how.num_probes} lists, {how.refined} candidates per answer",
        f"{built:.0f}",
        f"{peak:,.0f}",
        *_milliseconds(times),
        f"{_hits(np.array(answers), truth):.3f}",
        _milliseconds(filtered)[1],
    ]
    print(f"gallery: recall@10 of the tuning {how.recall:.3f}; {changes(gallery, world)}")
    return line


def changes(gallery: Gallery, world: World) -> str:
    """10,000 rows appended, one of them searched, 1 % of all removed: seconds of each."""
    rows = world.rows(10_000, part=10**6)
    samples = [Sample(f"new-{number}.jpg", Modality.VISIBLE) for number in range(len(rows))]
    table = fill.rows_of(samples, rows, root="/")
    began = time.perf_counter()
    gallery.add(table)
    appended = time.perf_counter() - began
    began = time.perf_counter()
    first = gallery.search(rows[17], 1)[0].id
    asked = time.perf_counter() - began
    removed = [f"{number}.jpg" for number in range(0, len(gallery) - len(rows), 100)]
    began = time.perf_counter()
    count = gallery.remove(ids=removed)
    missing = time.perf_counter() - began
    return (
        f"10,000 rows appended in {appended:.2f} s, one of them "
        f"{'found' if first == 'new-17.jpg' else 'NOT found'} {1000 * asked:.0f} ms later, "
        f"{count:,} removed in {missing:.2f} s"
    )


def _hits(answers: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(a, t).mean() for a, t in zip(answers, truth, strict=True)]))


def _milliseconds(times: list[float]) -> list[str]:
    return [f"{1000 * np.median(times):.1f}", f"{1000 * np.percentile(times, 95):.1f}"]


def _peak_mb() -> float:
    # of this program alone: `getrusage` begins with what the process that started it held
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


_SIDES = {"faiss": faiss_side, "gallery": gallery_side}


if __name__ == "__main__":
    main()
