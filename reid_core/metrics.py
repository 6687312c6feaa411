"""Retrieval scores from similarities and masks.

Knows no data set: who is query, gallery and ignored is said by `reid_core.protocols`.
Shapes: Q queries, G gallery rows, N rows of a data set, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reid_core.compiled import compiled
from reid_core.knn.threads import over_blocks
from reid_core.types import OUTLIER

_BLOCK = 128  # queries that one thread takes at a time


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of one retrieval, all as fractions; NaN where no query is valid.

    A query is valid if at least one gallery row that is not ignored for it has its identity; the
    means go over the valid queries only.

    Attributes:
        cmc: (max_rank,) share of queries whose first hit stands at rank 1, 2, ... or before.
        mAP: mean over queries of the average precision, itself the mean over hits of
            (hits so far) / (rank of the hit).
        mINP: mean over queries of (number of hits) / (rank of the last hit).
        num_valid_queries: queries that the means go over.
        ap: (Q,) average precision of each query, NaN for an invalid one.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    num_valid_queries: int
    ap: np.ndarray

    @property
    def num_invalid_queries(self) -> int:
        """Queries without any match, left out of every mean."""
        return len(self.ap) - self.num_valid_queries


def retrieval_metrics(
    similarity: np.ndarray | Tensor,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    *,
    ignore: np.ndarray | None = None,
    cmc: Literal["image", "identity"] = "image",
    max_rank: int = 20,
) -> RetrievalScores:
    """CMC, mAP and mINP of a similarity matrix. Equal similarities are ranked by gallery row.

    The gallery is not sorted: the rank of a hit is one plus the number of rows before it, and those
    are counted. Beside the inputs the memory is O(Q + threads * G).

    Args:
        similarity: (Q, G), larger = more similar; ranked in its own precision.
        query_pids: (Q,) int identities; a query of -1 (unknown) has no match.
        gallery_pids: (G,) int identities; each row of -1 is an identity of its own, nobody's match.
        ignore: (Q, G) bool, gallery rows that do not exist for a query; None = none.
        cmc: "image" ranks gallery rows; "identity" counts each gallery identity once, at its best
            row, as SYSU-MM01's public evaluation does. mAP and mINP rank rows in both.
        max_rank: length of the CMC; ranks beyond the gallery repeat the last value.

    Returns:
        Scores as fractions.

    Raises:
        ValueError: shapes that do not fit, an unknown `cmc`, NaN among the similarities, also in a
            row without a match or in an ignored place.

    Reference: the public evaluations of SYSU-MM01 and RegDB; INP from AGW.
    """
    query_pids, gallery_pids = _whole(query_pids, "query"), _whole(gallery_pids, "gallery")
    num_queries = _checked(similarity, query_pids, gallery_pids, ignore, cmc)
    ignore = None if ignore is None else np.asarray(ignore, dtype=np.bool_)
    known, gallery_ids = np.unique(_told_apart(gallery_pids, query_pids), return_inverse=True)
    query_ids = np.where(query_pids == OUTLIER, -1, _positions(known, query_pids))
    members, starts = _members(gallery_ids, len(known))
    first_rank = np.zeros(num_queries, dtype=np.int64)
    ap, inp = np.full(num_queries, np.nan), np.full(num_queries, np.nan)
    nothing = np.zeros((1, 0), dtype=np.bool_)

    def score(start: int, stop: int) -> None:
        rows = slice(start, stop)
        _score_queries(
            _on_host(similarity[rows]),
            query_ids[rows],
            gallery_ids,
            members,
            starts,
            nothing if ignore is None else ignore[rows],
            cmc == "identity",
            first_rank[rows],
            ap[rows],
            inp[rows],
        )

    over_blocks(score, num_queries, _BLOCK)
    if (first_rank < 0).any():
        raise ValueError(f"similarity row {int(np.argmax(first_rank < 0))} holds NaN")
    return _summary(first_rank, ap, inp, max_rank)


def joined(parts: Sequence[RetrievalScores]) -> RetrievalScores:
    """Scores of all queries, from those of consecutive blocks of them."""
    if len(parts) == 1:
        return parts[0]
    ap = np.concatenate([part.ap for part in parts])
    valid = [part for part in parts if part.num_valid_queries]
    counts = np.array([part.num_valid_queries for part in valid])
    if not valid:
        return replace(parts[0], ap=ap)
    return RetrievalScores(
        cmc=np.average([part.cmc for part in valid], axis=0, weights=counts),
        mAP=float(np.average([part.mAP for part in valid], weights=counts)),
        mINP=float(np.average([part.mINP for part in valid], weights=counts)),
        num_valid_queries=int(counts.sum()),
        ap=ap,
    )


def _checked(
    similarity: np.ndarray | Tensor,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    ignore: np.ndarray | None,
    cmc: str,
) -> int:
    """The number of queries, once all arguments were found to fit."""
    if cmc not in ("image", "identity"):
        raise ValueError(f"cmc is {cmc!r}; it must be 'image' or 'identity'")
    shape = (len(query_pids), len(gallery_pids))
    if not hasattr(similarity, "shape"):
        raise ValueError("similarity is no array: give (queries, gallery) numbers")
    if tuple(similarity.shape) != shape:
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)}, but there are {shape[0]} query and"
            f" {shape[1]} gallery identities: it must be (queries, gallery)"
        )
    if ignore is not None and tuple(ignore.shape) != shape:
        raise ValueError(f"ignore has shape {tuple(ignore.shape)}, similarity has {shape}")
    return len(query_pids)


def _whole(pids: np.ndarray, side: str) -> np.ndarray:
    """Identities as int64 (n,), which have a -1 for the unknown."""
    numbers = np.asarray(pids)
    if len(numbers) and numbers.dtype.kind not in "iu":
        raise ValueError(f"{side}_pids are no whole numbers: give int64, -1 where unknown")
    if numbers.ndim != 1:
        raise ValueError(f"{side}_pids have shape {numbers.shape}: give (n,), one of each row")
    if numbers.dtype == np.uint64 and numbers.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"{side}_pids: {numbers.max()} is no int64")
    return numbers.astype(np.int64)


def _told_apart(gallery_pids: np.ndarray, query_pids: np.ndarray) -> np.ndarray:
    """Gallery identities, in which each unknown one is a number that nobody else has."""
    pids = np.array(gallery_pids, dtype=np.int64)
    (unknown,) = np.nonzero(pids == OUTLIER)
    lowest = min(pids.min(initial=OUTLIER), query_pids.min(initial=OUTLIER))
    pids[unknown] = lowest - 1 - np.arange(len(unknown))
    return pids


def _members(gallery_ids: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Gallery rows by identity, and where the rows of each of `num` identities start among them."""
    members = np.argsort(gallery_ids, kind="stable")
    return members, np.searchsorted(gallery_ids[members], np.arange(num + 1))


def _positions(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Position of each id among the sorted known ones, -1 where it is not among them."""
    if not len(known):
        return np.full(len(ids), -1, dtype=np.int64)
    position = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[position] == ids, position, -1)


def _on_host(block: np.ndarray | Tensor) -> np.ndarray:
    """A block of similarities as an array of a floating type that the kernel knows."""
    if isinstance(block, Tensor):
        if block.is_floating_point():  # NumPy knows no bfloat16
            block = block.to(torch.promote_types(block.dtype, torch.float32))
        block = block.detach().cpu().numpy()
    return block if block.dtype in (np.float32, np.float64) else block.astype(np.float64)


def _summary(
    first_rank: np.ndarray, ap: np.ndarray, inp: np.ndarray, max_rank: int
) -> RetrievalScores:
    valid = first_rank > 0
    if not valid.any():
        nowhere = np.full(max_rank, np.nan)
        return RetrievalScores(nowhere, float("nan"), float("nan"), 0, ap)
    hits = np.bincount(first_rank[valid], minlength=max_rank + 1)[1 : max_rank + 1]
    return RetrievalScores(
        cmc=np.cumsum(hits) / valid.sum(),
        mAP=float(ap[valid].mean()),
        mINP=float(inp[valid].mean()),
        num_valid_queries=int(valid.sum()),
        ap=ap,
    )


@compiled()
def _score_queries(
    similarity: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,
    ignore: np.ndarray,
    by_identity: bool,
    first_rank: np.ndarray,
    ap: np.ndarray,
    inp: np.ndarray,
) -> None:
    """Fills first_rank (0 = invalid, -1 = NaN met), ap and inp of a block of queries."""
    row = np.empty(len(gallery_ids), dtype=similarity.dtype)
    hits = np.empty(len(gallery_ids), dtype=np.int64)
    seen = np.full(len(starts) - 1, -1, dtype=np.int64)
    for q in range(len(query_ids)):
        # without a mask `ignore` is one empty row, which serves every query
        if not _copy_without_ignored(similarity[q], ignore[q % len(ignore)], row):
            first_rank[q] = -1
            continue
        if query_ids[q] < 0:
            continue
        num_hits = 0
        for m in range(starts[query_ids[q]], starts[query_ids[q] + 1]):
            if row[members[m]] == row[members[m]]:
                hits[num_hits] = members[m]
                num_hits += 1
        if num_hits == 0:
            continue
        ranks = _ranks(row, hits[:num_hits])
        ap[q], inp[q] = average_precision(ranks), num_hits / ranks[-1]
        first_rank[q] = ranks[0]
        if by_identity and ranks[0] > 1:
            first_rank[q] = 1 + _identities_above(row, hits[:num_hits], gallery_ids, seen, q)


@compiled()
def average_precision(ranks: np.ndarray) -> float:
    """AP of one query: the mean, over its hits, of the share of hits down to that one.

    Args:
        ranks: (M,) int64 ranks of all M hits, ascending, from 1; M > 0.
    """
    precision = 0.0
    for place in range(len(ranks)):
        precision += (place + 1) / ranks[place]
    return precision / len(ranks)


@compiled()
def _copy_without_ignored(similarity: np.ndarray, ignore: np.ndarray, row: np.ndarray) -> bool:
    """Copies a query's similarities; False where one is NaN.

    Ignored rows become NaN: neither above nor equal to anything, they do not exist any more.
    """
    sound = True
    for g in range(len(row)):
        sound &= similarity[g] == similarity[g]
        row[g] = similarity[g]
    for g in range(len(ignore)):
        row[g] = np.nan if ignore[g] else row[g]
    return sound


@compiled()
def _ranks(row: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Ranks of the hits, ascending. Counted, not sorted: a SIMD pass over the row for each."""
    ranks = np.empty(len(hits), dtype=np.int64)
    for p in range(len(hits)):
        score, above = row[hits[p]], np.int32(0)
        earlier, later = row[: hits[p]], row[hits[p] + 1 :]
        for g in range(len(earlier)):
            above += np.int32(earlier[g] >= score)
        for g in range(len(later)):
            above += np.int32(later[g] > score)
        place = p
        while place > 0 and ranks[place - 1] > above:
            ranks[place] = ranks[place - 1]
            place -= 1
        ranks[place] = above + 1
    return ranks


@compiled()
def _identities_above(
    row: np.ndarray, hits: np.ndarray, gallery_ids: np.ndarray, seen: np.ndarray, query: int
) -> int:
    """Identities with a row before the best hit; `seen` remembers the query that met them last."""
    best = hits[0]
    for hit in hits:
        if row[hit] > row[best]:
            best = hit
    count = 0
    for g in range(len(row)):
        before = row[g] >= row[best] if g < best else row[g] > row[best]
        if before and seen[gallery_ids[g]] != query:
            seen[gallery_ids[g]] = query
            count += 1
    return count
