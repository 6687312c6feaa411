"""Rows that are equal to the last bit: found once, searched once, put back afterwards.

Shapes: N rows, U distinct rows, D feature width, k neighbors. Pseudo-label data has many of them:
an image that stands beside each of its captions, a caption that was written twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reid_core.compiled import compiled
from reid_core.knn.products import Features, on_device, on_host, take

_HASH_NUMBERS = 1 << 24  # size of one block of products on a device, 128 MiB


@dataclass(frozen=True)
class EqualRows:
    """Groups of equal rows, numbered by their first row.

    Attributes:
        first: (U,) first row of each group, ascending.
        member_of: (N,) group of each row.
        starts, members: group g is members[starts[g]:starts[g + 1]], ascending.
    """

    first: np.ndarray
    member_of: np.ndarray
    starts: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class DistinctRows:
    """Rows without their repetitions, and where these stood.

    Attributes:
        features: (U, D), the first of each group; of all rows themselves where none is repeated.
        groups: of all N rows.
    """

    features: Features
    groups: EqualRows

    @staticmethod
    def of(features: Features) -> DistinctRows:
        """Finds the equal rows of float32 features (N, D), and takes each once."""
        groups = find_equal_rows(features)
        is_whole = len(groups.first) == len(features)
        return DistinctRows(features if is_whole else take(features, groups.first), groups)


def find_equal_rows(features: Features) -> EqualRows:
    """Groups the rows of float32 features (N, D) by their bits."""
    hashes = _row_hashes(features)
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    twins = np.flatnonzero(first[group] != np.arange(len(hashes)))
    if len(twins):
        # two different rows may have one hash: such a row becomes a group of its own
        collided = twins[~_same_bits(features, twins, first[group[twins]])]
        group[collided] = len(first) + np.arange(len(collided))
        first = np.concatenate([first, collided])
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    member_of = number[group]
    members = np.argsort(member_of, kind="stable")
    starts = np.searchsorted(member_of[members], np.arange(len(first) + 1))
    return EqualRows(first[order], member_of, starts, members)


def spread_to_equal_rows(
    groups: EqualRows, rows: np.ndarray, similarity: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors of all rows from the neighbors of the distinct ones.

    Args:
        groups: of the N rows.
        rows, similarity: (U, min(k, U)) neighbors among the distinct rows, the row itself first,
            then by (similarity, row); float64 similarities.
        k: neighbors per row, at most N.

    Returns:
        (N, k) rows and similarities: self first, then by (similarity, row) among all N rows.
    """
    shape = (len(groups.member_of), k)
    spread = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float64)
    _spread(rows, similarity, groups.member_of, groups.starts, groups.members, *spread)
    return spread


def _row_hashes(features: Features) -> np.ndarray:
    """64 bits per row: a sum of its bit patterns times fixed odd numbers, modulo 2^64."""
    factors = np.random.Philox(key=0).random_raw(features.shape[1]).astype(np.int64) | 1
    hashes = np.empty(len(features), dtype=np.int64)
    if not on_device(features):
        _hash(on_host(features).view(np.int32), factors, hashes)
        return hashes
    step = max(1, _HASH_NUMBERS // features.shape[1])
    for start in range(0, len(features), step):
        bits = torch.as_tensor(features[start : start + step]).view(torch.int32).long()
        sums = (bits * torch.from_numpy(factors).to(bits.device)).sum(dim=1)
        hashes[start : start + step] = sums.cpu().numpy()
    return hashes


def _same_bits(features: Features, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(M,) bool, whether two rows are equal."""
    bits = torch.as_tensor(features).view(torch.int32)
    a, b = (torch.from_numpy(rows).to(bits.device) for rows in (first, second))
    step = max(1, _HASH_NUMBERS // features.shape[1])
    chunks = zip(a.split(step), b.split(step), strict=True)
    same = [(bits[i] == bits[j]).all(dim=1).cpu() for i, j in chunks]
    return torch.cat(same).numpy()


@compiled()
def _hash(bits: np.ndarray, factors: np.ndarray, hashes: np.ndarray) -> None:
    for i in range(bits.shape[0]):
        total = np.int64(0)
        for d in range(bits.shape[1]):
            total += np.int64(bits[i, d]) * factors[d]
        hashes[i] = total


@compiled()
def merge_ascending(out: np.ndarray, begin: int, filled: int, twins: np.ndarray, own: int) -> int:
    """Merges ascending `twins` but `own` into the ascending out[begin:filled].

    Returns the new number filled. Once `out` is full the largest numbers fall out of it.
    """
    for row in twins:
        if row == own:
            continue
        if filled < len(out):
            filled += 1
        elif row > out[filled - 1]:
            break
        place = filled - 1
        while place > begin and out[place - 1] > row:
            out[place] = out[place - 1]
            place -= 1
        out[place] = row
    return filled


@compiled()
def _spread(
    rows: np.ndarray,
    similarity: np.ndarray,
    member_of: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    out_rows: np.ndarray,
    out_similarity: np.ndarray,
) -> None:
    """Puts in place of each distinct row all rows equal to it; ties stay in order of the row."""
    k = out_rows.shape[1]
    for i in range(out_rows.shape[0]):
        near, value = rows[member_of[i]], similarity[member_of[i]]
        out_rows[i, 0], out_similarity[i, 0] = i, value[0]
        # the own distinct row stands first whatever its value: its twins go where the value says
        own_waits, c, filled = True, 1, 1
        while filled < k:
            level = value[c] if c < len(near) else -np.inf
            if own_waits and value[0] >= level:
                level = value[0]
            begin = filled
            if own_waits and value[0] == level:
                own_waits = False
                twins = members[starts[near[0]] : starts[near[0] + 1]]
                filled = merge_ascending(out_rows[i], begin, filled, twins, i)
            while c < len(near) and value[c] == level:
                twins = members[starts[near[c]] : starts[near[c] + 1]]
                filled = merge_ascending(out_rows[i], begin, filled, twins, i)
                c += 1
            out_similarity[i, begin:filled] = level
