"""How fast and how small is the clustering? Prints the tables of docs/benchmarks.md.

    python -m benchmarks.clustering            all tables, about ten minutes on two cores
    python -m benchmarks.clustering --quick    small sizes, under a minute

Every run is a process of its own, so that its peak memory is its own. "Memory" is the highest
resident size during the call minus the resident size before it, when libraries, compiled kernels
and the features are already there. Seconds are the least of two runs, for the rival as for ours;
CPU seconds tell what a busy machine took from them. The rival is benchmarks/dense_clustering.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks import dense_clustering
from reid_core import clustering
from reid_core.knn import products, search
from reid_core.knn.certified import best_on_host

WORLDS = ("easy", "hard", "random", "copies")
MEBIBYTE = 2**20
HALVES = [(10_000, 256), (20_000, 512), (34_000, 2048), (100_000, 256)]
SHARE_OF_FIRST = 0.65  # SYSU-MM01's visible images


def world(kind: str, num_rows: int, width: int) -> np.ndarray:
    """Unit rows.

    easy: identities far apart. hard: four looks per identity, from clear to drowned in noise.
    random: no identities. copies: hard, each row repeated up to 8 times and some 60 times more.
    """
    rng = np.random.default_rng(0)
    if kind == "easy":
        centers = rng.normal(size=(num_rows // 30, width)).astype(np.float32)
        x = centers[rng.integers(0, len(centers), num_rows)]
        x = x + 0.7 * rng.normal(size=x.shape).astype(np.float32)
    elif kind == "random":
        x = rng.normal(size=(num_rows, width)).astype(np.float32)
    elif kind == "hard":
        identities = rng.normal(size=(num_rows // 40, width)).astype(np.float32)
        looks = np.repeat(identities, 4, axis=0)
        looks += rng.normal(size=looks.shape).astype(np.float32)
        x = looks[rng.integers(0, len(looks), num_rows)]
        x += rng.uniform(1, 6, (num_rows, 1)) * rng.normal(size=x.shape)
    else:
        distinct = world("hard", max(80, num_rows // 4), width)
        x = np.repeat(distinct, rng.integers(1, 9, len(distinct)), axis=0)[:num_rows]
        x = np.concatenate([x, np.repeat(distinct[:50], 60, axis=0)])[-num_rows:]
        return np.ascontiguousarray(x[rng.permutation(len(x))])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def job(who: str, kind: str, num_rows: int, width: int, labels_file: str) -> None:
    """Runs one clustering in this process and prints its figures as JSON."""
    features: np.ndarray | torch.Tensor = world(kind, num_rows, width)
    clustering.cluster(world("easy", 300, 16))
    if who == "cuda":
        features = torch.from_numpy(features).cuda()
        clustering.cluster(features[:2000])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    if who in ("separate", "jointly"):
        is_second = np.arange(num_rows) >= SHARE_OF_FIRST * num_rows
        is_second = np.random.default_rng(1).permutation(is_second)
        if who == "jointly":
            labels = clustering.cluster_jointly(features, is_second)
        else:
            parts = [clustering.cluster(features[is_second == side]) for side in (False, True)]
            labels = np.concatenate(parts)
        searched, seconds = float("nan"), time.perf_counter() - start
    elif who == "rival":
        timed = dense_clustering.cluster(np.asarray(features))
        labels, searched, seconds = timed.labels, timed.search_seconds, timed.seconds
    else:
        result = search.nearest(features, 30)
        searched = time.perf_counter() - start
        graph = clustering.jaccard_graph_of_neighbors(result, features, max_distance=0.6)
        labels = clustering.dbscan(graph, eps=0.6, min_samples=4)
        seconds = time.perf_counter() - start
    figures = {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "search": searched,
        "memory": resident("VmHWM") - before,
        "clusters": int(labels.max()) + 1,
        "outliers": float((labels < 0).mean()),
        "device": torch.cuda.max_memory_allocated() / MEBIBYTE if who == "cuda" else 0.0,
    }
    np.save(labels_file, labels)
    print(json.dumps(figures))


def run(who: str, kind: str, num_rows: int, width: int, *, repeats: int = 2) -> dict:
    """The quickest of a few jobs, each in a fresh process: its figures and labels."""
    size = [str(num_rows), str(width)]
    command = [sys.executable, "-m", "benchmarks.clustering", "--job", who, kind, *size]
    results = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            labels_file = f"{folder}/labels.npy"
            printed = subprocess.run(
                [*command, labels_file], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            results.append(json.loads(printed.splitlines()[-1]) | {"labels": np.load(labels_file)})
    return min(results, key=lambda result: result["seconds"])


def against_rival(sizes: list[int], width: int) -> None:
    """Labels, seconds and memory of both on the same rows."""
    print(f"\nAgainst the dense row-by-row algorithm, {width} wide, k1 30, k2 6, eps 0.6\n")
    print(
        "| rows | world | clusters | outliers | ARI | same outliers | rival s | ours s (search)"
        " | faster | rival CPU s | ours CPU s | rival MiB | ours MiB | smaller |"
    )
    print("|" + "---|" * 14)
    for num_rows in sizes:
        for kind in WORLDS:
            rival, ours = run("rival", kind, num_rows, width), run("ours", kind, num_rows, width)
            ari = adjusted_rand_score(rival["labels"], ours["labels"])
            same = bool(((rival["labels"] < 0) == (ours["labels"] < 0)).all())
            print(
                f"| {num_rows} | {kind} | {ours['clusters']} | {ours['outliers']:.1%} | {ari:.4f} |"
                f" {'yes' if same else 'NO'} | {rival['seconds']:.2f} |"
                f" {ours['seconds']:.2f} ({ours['search']:.2f}) |"
                f" {rival['seconds'] / ours['seconds']:.0f}x | {rival['cpu']:.2f} |"
                f" {ours['cpu']:.2f} | {rival['memory']:.0f} | {ours['memory']:.0f} |"
                f" 1/{rival['memory'] / ours['memory']:.0f} |",
                flush=True,
            )


def both_modalities(sizes: list[tuple[int, int]]) -> None:
    """One clustering of both modalities against the two of each alone."""
    print(f"\nBoth modalities together, {SHARE_OF_FIRST:.0%} of the rows in the first\n")
    print("| rows | width | alone s | jointly s | alone CPU s | jointly CPU s | CPU ratio | MiB |")
    print("|" + "---|" * 8)
    for num_rows, width in sizes:
        alone, jointly = (run(who, "hard", num_rows, width) for who in ("separate", "jointly"))
        print(
            f"| {num_rows} | {width} | {alone['seconds']:.2f} | {jointly['seconds']:.2f} |"
            f" {alone['cpu']:.2f} | {jointly['cpu']:.2f} | {jointly['cpu'] / alone['cpu']:.2f} |"
            f" {jointly['memory']:.0f} |",
            flush=True,
        )


def growth(sizes: list[int], width: int) -> None:
    """How time and memory grow where the rival cannot go."""
    print(f"\nGrowth, {width} wide ({torch.get_num_threads()} threads)\n")
    print("| rows | world | search s | the rest s | rest / search | memory above the features |")
    print("|" + "---|" * 6)
    for kind in ("hard", "random"):
        steps = []
        for num_rows in sizes:
            ours = run("ours", kind, num_rows, width, repeats=1)
            search, rest = ours["search"], ours["seconds"] - ours["search"]
            steps.append((search, rest))
            print(
                f"| {num_rows} | {kind} | {search:.2f} | {rest:.2f} | {rest / search:.2f} |"
                f" {ours['memory']:.0f} MiB |",
                flush=True,
            )
        search, rest = (last / first for first, last in zip(steps[0], steps[-1], strict=True))
        print(f"| x{sizes[-1] / sizes[0]:.0f} | {kind} | x{search:.0f} | x{rest:.0f} | | |")


def on_a_gpu(sizes: list[tuple[int, int]]) -> None:
    """Features on CUDA, neighbors found there, graph and labels on the host."""
    print("\nOn a GPU\n")
    if not torch.cuda.is_available():
        print("not measured: this machine has no GPU")
        return
    print(f"{torch.cuda.get_device_name()}, {torch.get_num_threads()} threads on the host\n")
    print("| rows | width | search s | all s | device MiB | host MiB |")
    print("|" + "---|" * 6)
    for num_rows, width in sizes:
        ours = run("cuda", "hard", num_rows, width)
        print(
            f"| {num_rows} | {width} | {ours['search']:.2f} | {ours['seconds']:.2f} |"
            f" {ours['device']:.0f} | {ours['memory']:.0f} |",
            flush=True,
        )


def half_of_the_products(sizes: list[tuple[int, int]]) -> None:
    """The search's tiles against faiss's, from rows to ordered neighbors, in this process."""
    print("\nHalf of the products: `all_pairs` against `faiss.knn`, 30 neighbors\n")
    if find_spec("faiss") is None:
        print("not measured: faiss is not installed")
        return
    print(
        "| rows | width | faiss.knn s | ours s | CPU s | CPU s, ours | less CPU |\n|" + "---|" * 7
    )
    for num_rows, width in sizes:
        features = world("hard", num_rows, width)
        search.nearest(features[:2000], 30)
        seconds, busy = [], []
        for run_once in (search_by_faiss, lambda rows: search.nearest(rows, 30)):
            start, started = time.perf_counter(), time.process_time()
            run_once(features)
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - started)
        rival, ours = seconds
        print(
            f"| {num_rows} | {width} | {rival:.2f} | {ours:.2f} | {busy[0]:.1f} | {busy[1]:.1f} |"
            f" {busy[0] / busy[1]:.1f}x |",
            flush=True,
        )


def search_by_faiss(features: np.ndarray) -> None:
    """The same neighbors from faiss's candidates, certified in the same way."""
    own = np.arange(len(features))
    candidates = products.largest_products(features, features, 38)
    best_on_host(candidates, own, features, features, 30)


def main() -> None:
    """Reads the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--job", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        who, kind, num_rows, width, labels_file = arguments.job
        job(who, kind, int(num_rows), int(width), labels_file)
        return
    quick = arguments.quick
    against_rival([1000, 2000] if quick else [2000, 5000, 10_000], 512)
    growth([2000, 5000] if quick else [10_000, 30_000, 100_000], 256)
    both_modalities([(4000, 2048)] if quick else [(8000, 2048), (34_000, 2048)])
    half_of_the_products([(5000, 256)] if quick else HALVES)
    on_a_gpu([(34_000, 2048)] if quick else [(34_000, 2048), (1_000_000, 256)])


if __name__ == "__main__":
    main()
