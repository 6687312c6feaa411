"""One clustering of a million rows, in phases that can be run one at a time. For docs/scaling.md.

    python -m benchmarks.scaling --out DIR [--rows 1000000] [--width 64] [--phase NAME]

Each phase is a process of its own, so that its peak memory is its own, and leaves a line of JSON in
DIR/scaling.jsonl: wall and CPU seconds, the highest resident size, and of that what the input took.

    blocks    the exact search of as many blocks of 1,024 rows as fit a minute, and what all would
              take (each pair twice, as where several nodes search)
    nearest   the exact search of all rows in this process; leaves the neighbors in DIR
    graph     the approximate search of all rows, with its recall; leaves the neighbors in DIR
    turn      Jaccard graph, DBSCAN and centroids of the neighbors that were left last
    arrive    what the memory bank does while features arrive: pieces of 64 MiB from eight workers
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipelines.training.incoming import Incoming
from reid_core import clustering
from reid_core.knn.approximate import GraphSearch
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.search import nearest, open_search
from reid_core.types import Modality

K1, EPS, WORKERS, PIECE_BYTES = 30, 0.6, 8, 1 << 26
NEIGHBORS = "neighbors.npz"
_MINUTE = 60.0
_CPU = torch.device("cpu")


def world(num_rows: int, width: int) -> np.ndarray:
    """Unit rows of identities of forty rows each, with four looks, from clear to noisy."""
    rng = np.random.default_rng(0)
    identities = rng.standard_normal((num_rows // 40, width), dtype=np.float32)
    looks = np.repeat(identities, 4, axis=0)
    looks += rng.standard_normal(looks.shape, dtype=np.float32)
    x = looks[rng.integers(0, len(looks), num_rows)]
    for part in np.array_split(np.arange(num_rows), 1 + num_rows // 50_000):
        noise = rng.standard_normal((len(part), width), dtype=np.float32)
        x[part] += rng.uniform(0.5, 3, (len(part), 1)).astype(np.float32) * noise
        x[part] /= np.linalg.norm(x[part], axis=1, keepdims=True)
    return x


def blocks(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """Blocks for a minute, then the rest by proportion."""
    search = open_search(features, K1)
    began, done = time.perf_counter(), 0
    while done < search.num_blocks and time.perf_counter() - began < _MINUTE:
        search.run(done)
        done += 1
    spent = time.perf_counter() - began
    return {
        "blocks": done,
        "of": search.num_blocks,
        "all s, extrapolated": spent / done * search.num_blocks,
    }


def exact(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """All neighbors, each pair of rows multiplied once."""
    result = nearest(features, K1)
    np.savez(folder / NEIGHBORS, rows=result.rows, similarity=result.similarity)
    return {}


def graph(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """All neighbors by a graph."""
    search = GraphSearch()
    result = search(features, K1)
    np.savez(folder / NEIGHBORS, rows=result.rows, similarity=result.similarity)
    return {"recall": search.recalls[0]}


def turn(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """What follows the search."""
    with np.load(folder / NEIGHBORS) as file:
        result = Neighbors(file["rows"], file["similarity"])
    began = time.perf_counter()
    distances = clustering.jaccard_graph_of_neighbors(result, features, k1=K1, max_distance=EPS)
    jaccard = time.perf_counter() - began
    labels = clustering.dbscan(distances, eps=EPS, min_samples=4)
    dbscan = time.perf_counter() - began - jaccard
    clustering.unit_centroids(features, labels)
    return {
        "Jaccard s": jaccard,
        "DBSCAN s": dbscan,
        "centroids s": time.perf_counter() - began - jaccard - dbscan,
        "entries": int(distances.nnz),
        "clusters": int(labels.max()) + 1,
        "outliers": float((labels < 0).mean()),
    }


def arrive(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """Shares of eight workers, in pieces, into one block; the input stands for the workers."""
    incoming = Incoming({Modality.VISIBLE: len(features)}, _CPU)
    incoming.make_room(features)
    step = PIECE_BYTES // (4 * features.shape[1])
    for rank, share in enumerate(np.array_split(features, WORKERS)):
        for start in range(0, len(share), step):
            piece = share[start : start + step].copy()
            incoming.place(Modality.VISIBLE, piece, rank, WORKERS, start)
            incoming.count(Modality.VISIBLE, len(piece), rank, WORKERS, start)
    assert np.array_equal(incoming.rows(Modality.VISIBLE).numpy(), features)
    return {}


PHASES: dict[str, Callable[[np.ndarray, Path], dict[str, Any]]] = {
    "arrive": arrive,
    "blocks": blocks,
    "nearest": exact,
    "graph": graph,
    "turn": turn,
}


def run(phase: str, num_rows: int, width: int, folder: Path) -> None:
    """One phase in this process; appends its line."""
    clustering.cluster(world(400, width))  # numba compiles
    features = world(num_rows, width)
    before = psutil.Process().memory_info().rss
    began, started = time.perf_counter(), time.process_time()
    result = PHASES[phase](features, folder)
    line = {
        "phase": phase,
        "rows": num_rows,
        "width": width,
        "wall s": time.perf_counter() - began,
        "CPU s": time.process_time() - started,
        "threads": torch.get_num_threads(),
        "features MiB": features.nbytes / 2**20,
        "resident before MiB": before / 2**20,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        **result,
    }
    with (folder / "scaling.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    """Reads the command line; without a phase, all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--phase", choices=PHASES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.phase:
        run(arguments.phase, arguments.rows, arguments.width, arguments.out)
        return
    for phase in PHASES:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:], "--phase", phase]
        )


if __name__ == "__main__":
    main()
