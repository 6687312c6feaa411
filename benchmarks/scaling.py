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

Named alone, the two ways to share the exact search, in two processes of one thread each, which hold
the rows' halves or all of them at first; with the seconds and the bytes that cross between them:

    workers   each gathers the other's half over gloo and searches half of the blocks
    searchers the memory bank, which has all rows, sends them to a searcher and takes half itself
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipelines.distributed import collectives
from pipelines.training.incoming import Incoming
from reid_core import clustering
from reid_core.knn.approximate import GraphSearch
from reid_core.knn.neighbors import Neighbors
from reid_core.knn.search import nearest, open_search
from reid_core.types import Modality

K1, EPS, WORKERS, PIECE_BYTES = 30, 0.6, 8, 1 << 26
NEIGHBORS = "neighbors.npz"
SHARING, REPEATS = 2, 3
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
    return {"digest": _digest(result)}


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


def workers(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """Two processes with a half of the rows each; the first one has all neighbors at the end."""
    np.save(folder / "rows.npy", features)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_worker, args=(port, folder), nprocs=SHARING)
    return json.loads((folder / "workers.json").read_text())


def _worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=SHARING)
    mapped = np.load(folder / "rows.npy", mmap_mode="r")
    share = torch.from_numpy(mapped[collectives.slice_of(len(mapped))].copy())
    runs: list[dict[str, Any]] = []
    for _ in range(REPEATS):
        dist.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        whole = collectives.gather_shares(share, len(mapped)).numpy()
        gathering = time.perf_counter() - began
        search = open_search(whole, K1)
        own = collectives.slice_of(search.num_blocks)
        parts = {block: search.run(block) for block in range(own.start, own.stop)}
        everyones: list[Any] = [None] * SHARING
        dist.gather_object(parts, everyones if rank == 0 else None)
        digest = ""
        if rank == 0:
            of_blocks = {block: part for one in everyones for block, part in one.items()}
            digest = _digest(search.join([of_blocks[b] for b in range(search.num_blocks)]))
        line = {"all s": time.perf_counter() - began, "sending s": gathering, "digest": digest}
        line["CPU s of both"] = sum(collectives.of_every_process(time.process_time() - cpu))
        sent = share.nbytes + (_bytes(parts) if rank > 0 else 0)
        runs.append(line | {"bytes that cross": sum(collectives.of_every_process(sent))})
    if rank == 0:
        (folder / "workers.json").write_text(json.dumps(_least(runs)))
    dist.destroy_process_group()


def searchers(features: np.ndarray, folder: Path) -> dict[str, Any]:
    """The memory bank and a searcher, which stands for that of another node.

    Half of the rows came from the other node before, while images were still embedded: those bytes
    are counted, their seconds are not.
    """
    import ray

    from pipelines.training import distributed_knn

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    searcher = distributed_knn.SearcherActor.options(num_cpus=0, runtime_env=one_thread).remote()
    send, sending = distributed_knn._send, list[float]()
    search = open_search(features, K1)
    theirs = range(len(np.array_split(np.arange(search.num_blocks), SHARING)[0]))
    neighbors = sum(_bytes({block: search.run(block)}) for block in theirs)

    def timed(*call: Any) -> None:
        began = time.perf_counter()
        send(*call)
        sending.append(time.perf_counter() - began)

    def cpu_of_both() -> float:
        return time.process_time() + ray.get(searcher.__ray_call__.remote(_process_time))

    distributed_knn._send = timed
    runs: list[dict[str, Any]] = []
    for _ in range(REPEATS):
        before, began = cpu_of_both(), time.perf_counter()
        result = distributed_knn.nearest_by([searcher], features, K1, takes_part=True)
        line = {"all s": time.perf_counter() - began, "sending s": sending[-1]}
        line |= {"digest": _digest(result), "CPU s of both": cpu_of_both() - before}
        crossed = features.nbytes // 2 + features.nbytes + neighbors
        runs.append(line | {"bytes that cross": crossed})
    ray.shutdown()
    return _least(runs)


def _process_time(_: object) -> float:
    return time.process_time()


def _bytes(parts: Mapping[int, Neighbors]) -> int:
    return sum(part.rows.nbytes + part.similarity.nbytes for part in parts.values())


def _digest(result: Neighbors) -> str:
    return hashlib.sha256(result.rows.tobytes() + result.similarity.tobytes()).hexdigest()[:12]


def _least(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The quickest run, beside the seconds of all."""
    return min(runs, key=lambda run: run["all s"]) | {"runs s": [run["all s"] for run in runs]}


PHASES: dict[str, Callable[[np.ndarray, Path], dict[str, Any]]] = {
    "arrive": arrive,
    "blocks": blocks,
    "nearest": exact,
    "graph": graph,
    "turn": turn,
}
NAMED_ALONE = {"workers": workers, "searchers": searchers}


def run(phase: str, num_rows: int, width: int, folder: Path) -> None:
    """One phase in this process; appends its line."""
    clustering.cluster(world(400, width))  # numba compiles
    features = world(num_rows, width)
    before = psutil.Process().memory_info().rss
    began, started = time.perf_counter(), time.process_time()
    result = (PHASES | NAMED_ALONE)[phase](features, folder)
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
    """Reads the command line; without a phase, all of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--phase", choices=PHASES | NAMED_ALONE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.phase:
        run(arguments.phase, arguments.rows, arguments.width, arguments.out)
        return
    command = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:], "--phase"]
    codes = {phase: subprocess.run([*command, phase]).returncode for phase in PHASES}
    if failed := [phase for phase, code in codes.items() if code]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
