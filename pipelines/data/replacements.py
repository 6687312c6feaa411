"""Which image takes the place of one that turns out to be unreadable: another of its cluster.

Chosen with the plan, for every place of it, so that the answer depends on neither the number of
workers nor the order in which files are read.
"""

from __future__ import annotations

import numpy as np

NUM_REPLACEMENTS = 2  # a share of some thousandths is broken: all three is a case for an error


def replacements(rows: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """For each place of a plan, places that hold other images of the same class.

    A place stands for all that belongs together there: a row and, where there is one, its caption.

    Args:
        rows: (batches, B) int64 planned rows.
        labels: (batches, B) int64 their classes; outliers stand in for each other.
        seeds: (batches, B) uint64, which choose.

    Returns:
        (batches, B, NUM_REPLACEMENTS) int64 places, counted through all batches, of distinct rows;
        -1 where the plan has no further image of the class.
    """
    keys = labels.ravel() * (rows.max(initial=0) + 1) + rows.ravel()
    _, places, own = np.unique(keys, return_index=True, return_inverse=True)
    classes = labels.ravel()[places]  # ascending, since the keys are
    starts = np.searchsorted(classes, classes)[own]
    sizes = np.searchsorted(classes, classes, side="right")[own] - starts
    others = np.maximum(sizes - 1, 1)
    step = seeds.ravel() % others.astype(np.uint64)
    result = []
    for number in range(NUM_REPLACEMENTS):
        away = 1 + (step.astype(np.int64) + number) % others
        chosen = places[starts + (own - starts + away) % sizes]
        result.append(np.where(sizes > 1 + number, chosen, -1))
    return np.stack(result, axis=1).reshape(*rows.shape, NUM_REPLACEMENTS)
