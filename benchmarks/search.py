"""One query against a million vectors: latency and recall of the index, against exact search.

Clustered vectors, as identities are: a centre per person and noise per image. Queries are rows of
their own that the index does not hold. The rival in the same run is faiss's exact search over
float32 rows in memory, which every answer is compared with.

    python benchmarks/search.py                       1,000,000 x 512, what docs/benchmarks.md shows
    python benchmarks/search.py --vectors 50000       seconds
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines.retrieval import vectors
from pipelines.retrieval.index import Built, Index, build
from reid_core.knn.products import largest_products
from reid_core.types import Modality, Sample

_PART = 16_384
_AT = 10


def main() -> None:
    """Write vectors, index them, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--identities", type=int, help="default: a person per 20 vectors")
    parser.add_argument("--noise", type=float, default=1.0, help="length, against a centre of 1")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here")
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
        built = build(root / "embeddings", root / "index", exact_up_to=10_000)
        report(built, measure(Index(root / "index"), world.rows(args.queries, part=-1)))


class World:
    """Identities as centres on the sphere, images as noisy copies of them."""

    def __init__(self, *, identities: int, dim: int, noise: float, seed: int) -> None:
        self._people, self._dim, self._noise, self._seed = identities, dim, noise, seed

    def rows(self, count: int, *, part: int) -> np.ndarray:
        """(count, D) unit rows; equal parts are equal."""
        rng = np.random.default_rng((self._seed, part + 1))
        pids = rng.integers(0, self._people, count)
        noise = rng.normal(size=(count, self._dim)) * (self._noise / self._dim**0.5)
        rows = self._centres(pids) + noise
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _centres(self, pids: np.ndarray) -> np.ndarray:
        """A person's centre is drawn from its number, so that no table of centres is kept."""
        distinct, places = np.unique(pids, return_inverse=True)
        centres = np.stack(
            [np.random.default_rng((self._seed, 0, pid)).normal(size=self._dim) for pid in distinct]
        )
        return (centres / np.linalg.norm(centres, axis=1, keepdims=True))[places]


def write(out: Path, world: World, count: int) -> None:
    """The vectors as `crossreid embed` writes them, half of them infrared."""
    dim = world.rows(1, part=0).shape[1]
    info = vectors.VectorInfo("benchmark", "descriptor", "float16", dim, str(out), str(out))
    vectors.claim(out, info, out)
    planned = {}
    for part, start in enumerate(range(0, count, _PART)):
        size = min(_PART, count - start)
        modality = (Modality.VISIBLE, Modality.INFRARED)
        rows = [Sample(f"{start + i}.jpg", modality[i % 2], -1, i % 6) for i in range(size)]
        found = world.rows(size, part=part).astype(np.float16)
        vectors.write_part(out, f"{part:06d}", rows, found, [])
        planned[f"{part:06d}"] = size
    vectors.finish(out, planned, [], count)


def measure(index: Index, queries: np.ndarray) -> dict[str, np.ndarray | float]:
    """Milliseconds of single queries, of exact ones too, and recall at ten."""
    rows = index.vectors(np.arange(len(index)))
    exact, ours, hits = [], [], 0
    visible = index.mask(modality=Modality.VISIBLE)
    filtered = []
    for query in queries[:, None]:
        began = time.perf_counter()
        truth = largest_products(query, rows, _AT).rows[0]
        exact.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = index.search(query, _AT).rows[0]
        ours.append(time.perf_counter() - began)
        hits += np.isin(found, truth).sum()
        began = time.perf_counter()
        index.search(query, _AT, mask=visible)
        filtered.append(time.perf_counter() - began)
    return {
        "exact": 1000 * np.array(exact),
        "index": 1000 * np.array(ours),
        "index, visible only": 1000 * np.array(filtered),
        "recall": hits / (len(queries) * _AT),
    }


def report(built: Built, found: dict[str, np.ndarray | float]) -> None:
    """The table of docs/benchmarks.md."""
    print(
        f"{built.num_vectors:,} x {built.dim}: {built.kind}, built in {built.seconds:.0f} s, "
        f"peak {built.memory_mb:,.0f} MB, on disk {built.disk_mb:,.0f} MB, recall@10 on the "
        f"build's own sample {built.recall:.3f}"
    )
    print("| one query at a time | median ms | p95 ms | recall@10 |\n|---|---|---|---|")
    recall = {"exact": 1.0, "index": found["recall"]}
    for name in ("exact", "index", "index, visible only"):
        times = found[name]
        shown = f"{recall[name]:.3f}" if name in recall else "not measured"
        print(f"| {name} | {np.median(times):.1f} | {np.percentile(times, 95):.1f} | {shown} |")
    print(json.dumps({"seconds": built.seconds, "recall": found["recall"]}))


if __name__ == "__main__":
    main()
