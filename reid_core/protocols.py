"""Who is query, who is gallery and what is ignored, per published protocol.

A protocol turns the rows of a test split into `Trial`s. Features are extracted once for the whole
split; every trial then only selects rows. Source of the rules: the data sets' own evaluation code,
restated in `Trial.name` order: protocol / mode / direction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reid_core.metrics import RetrievalScores, retrieval_metrics
from reid_core.types import Modality, Split

SYSU_GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SYSU_TRIALS = 10
SYSU_SHOTS = {"single": 1, "multi": 10}


@dataclass(frozen=True)
class Trial:
    """One query set against one gallery.

    Attributes:
        name: "<protocol>/<mode>/<direction>"; trials of one name are averaged.
        number: trial number within the name.
        query: (Q,) row ids of the split.
        gallery: (G,) row ids of the split.
        ignore: (Q, G) bool, gallery rows that do not exist for a query.
        cmc: "identity" counts repeats of an identity once (SYSU style), "image" counts images.
    """

    name: str
    number: int
    query: np.ndarray
    gallery: np.ndarray
    ignore: np.ndarray
    cmc: Literal["image", "identity"]


def sysu(split: Split) -> Iterator[Trial]:
    """SYSU-MM01: infrared queries, all-search and indoor-search, single- and multi-shot, 10 trials.

    The single-shot gallery draws with `random.seed(trial)` and the multi-shot gallery with
    `numpy.random.RandomState(trial)`, over people in ascending order, cameras in order and files in
    sorted order, as the published galleries were drawn. A query of camera 3 does not see camera 2,
    which films the same place.

    Args:
        split: test rows of both modalities, sorted by (camera, pid, file).

    Raises:
        ValueError: a modality or every gallery camera is missing.
    """
    query = split.rows(Modality.INFRARED)
    if not len(query):
        raise ValueError("SYSU evaluation needs infrared test images, the split has none")
    for mode, cameras in SYSU_GALLERY_CAMERAS.items():
        groups = _rows_per_person_and_camera(split, cameras)
        if not groups:
            raise ValueError(f"SYSU {mode}-search needs visible images of cameras {cameras}")
        for shot, count in SYSU_SHOTS.items():
            for number in range(SYSU_TRIALS):
                gallery = _draw_gallery(groups, count, number)
                ignore = np.outer(split.cameras[query] == 3, split.cameras[gallery] == 2)
                name = f"sysu/{mode}_{shot}/infrared_to_visible"
                yield Trial(name, number, query, gallery, ignore, "identity")


def _rows_per_person_and_camera(split: Split, cameras: Sequence[int]) -> list[np.ndarray]:
    rows = split.rows(Modality.VISIBLE)
    rows = rows[np.isin(split.cameras[rows], cameras)]
    order = np.lexsort((rows, split.cameras[rows], split.pids[rows]))
    rows = rows[order]
    keys = np.stack([split.pids[rows], split.cameras[rows]], axis=1)
    starts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    return np.split(rows, starts) if len(rows) else []


def _draw_gallery(groups: list[np.ndarray], count: int, trial: int) -> np.ndarray:
    if count == 1:
        single = random.Random(trial)
        return np.array([single.choice(group.tolist()) for group in groups], dtype=np.int64)
    multi = np.random.RandomState(trial)
    drawn = [multi.choice(group, min(count, len(group)), replace=False) for group in groups]
    return np.concatenate(drawn).astype(np.int64)


PROTOCOLS: dict[str, Callable[[Split], Iterator[Trial]]] = {"sysu": sysu}

HEADLINE = {
    "sysu": (
        "sysu/all_single/infrared_to_visible",
        "SYSU-MM01 all-search, single-shot, infrared query against visible gallery, "
        "mean of 10 galleries",
    )
}
"""Per kind: the trial name that a one-line summary shows, and what it means in words."""


def score(features: np.ndarray, pids: np.ndarray, trial: Trial) -> RetrievalScores:
    """Metrics of one trial.

    Args:
        features: (N, D) unit rows of the whole split.
        pids: (N,) person ids of the whole split.
        trial: which rows meet.
    """
    return retrieval_metrics(
        features[trial.query] @ features[trial.gallery].T,
        pids[trial.query],
        pids[trial.gallery],
        ignore=trial.ignore,
        cmc=trial.cmc,
    )


def chance_rank1(pids: np.ndarray, trial: Trial) -> float:
    """Expected Rank-1, a fraction, of a random ranking: right / candidate images, averaged."""
    right = (pids[trial.query][:, None] == pids[trial.gallery][None, :]) & ~trial.ignore
    valid = right.any(axis=1)
    return float((right.sum(axis=1) / (~trial.ignore).sum(axis=1))[valid].mean())
