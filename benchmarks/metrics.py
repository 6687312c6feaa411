"""How fast are the retrieval scores? Prints the table of docs/benchmarks.md.

    python -m benchmarks.metrics [--quick]

The rival is the loop over queries of public re-ID code: all similarities sorted first, then one
query after the other, for SYSU-MM01 with the camera rule and each identity counted once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from reid_core.metrics import retrieval_metrics

MAX_RANK = 20
T = TypeVar("T")


def rival(
    similarity: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    ignore: np.ndarray | None,
) -> tuple[np.ndarray, float, float]:
    """CMC, mAP, mINP; with `ignore` each identity counts once in the CMC."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    matches = gallery_pids[order] == query_pids[:, None]
    curves, precisions, penalties = [], [], []
    for q in range(len(query_pids)):
        result = matches[q]
        if ignore is not None:
            remaining = ~ignore[q][order[q]]
            ranked, result = gallery_pids[order[q]][remaining], result[remaining]
            _, first = np.unique(ranked, return_index=True)
            listed = ranked[np.sort(first)] == query_pids[q]
        else:
            listed = result
        if not result.any():
            continue
        curve = np.zeros(MAX_RANK)
        reached = np.minimum(listed.cumsum(), 1)[:MAX_RANK]
        curve[: len(reached)] = reached
        curve[len(reached) :] = 1
        curves.append(curve)
        hits = result.cumsum()
        precisions.append((hits / np.arange(1, len(result) + 1))[result].mean())
        penalties.append(hits[-1] / (np.flatnonzero(result)[-1] + 1))
    return np.mean(curves, axis=0), float(np.mean(precisions)), float(np.mean(penalties))


def timed(function: Callable[[], T], repeats: int) -> tuple[T, float]:
    """Result and the least of the seconds of a few runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def compare(num_queries: int, num_gallery: int, *, signal: float, by_identity: bool) -> None:
    """One row of the table: both on the same matrix, and whether they agree."""
    rng = np.random.default_rng(0)
    num_pids = num_gallery // 20
    query_pids = rng.integers(0, num_pids, num_queries)
    gallery_pids = rng.integers(0, num_pids, num_gallery)
    similarity = rng.normal(size=(num_queries, num_gallery)).astype(np.float32)
    similarity += signal * (query_pids[:, None] == gallery_pids)
    ignore = rng.random(similarity.shape) < 0.1 if by_identity else None
    ours, our_seconds = timed(
        lambda: retrieval_metrics(
            similarity,
            query_pids,
            gallery_pids,
            ignore=ignore,
            cmc="identity" if by_identity else "image",
            max_rank=MAX_RANK,
        ),
        3,
    )
    theirs, their_seconds = timed(lambda: rival(similarity, query_pids, gallery_pids, ignore), 1)
    agree = np.allclose(ours.cmc, theirs[0]) and np.allclose([ours.mAP, ours.mINP], theirs[1:])
    print(
        f"| {num_queries} x {num_gallery} | {'SYSU' if by_identity else 'image'} |"
        f" {ours.mAP:.3f} | {'yes' if agree else 'NO'} | {their_seconds:.2f} |"
        f" {our_seconds:.3f} | {their_seconds / our_seconds:.0f}x |",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    quick = parser.parse_args().quick
    retrieval_metrics(np.eye(2, dtype=np.float32), np.arange(2), np.arange(2))  # compiles
    print(f"\nRetrieval scores ({torch.get_num_threads()} threads)\n")
    print("| queries x gallery | CMC | mAP | agree | loop s | ours s | faster |")
    print("|" + "---|" * 7)
    for num_queries, num_gallery in [(500, 2000)] if quick else [(4000, 10_000), (4000, 20_000)]:
        for by_identity in (False, True):
            for signal in (0.0, 3.0):
                compare(num_queries, num_gallery, signal=signal, by_identity=by_identity)


if __name__ == "__main__":
    main()
