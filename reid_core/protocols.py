"""Who is query, who is gallery and what is ignored, per published protocol.

A protocol turns the rows of a test split into `Trial`s. Features are extracted once for the whole
split; every trial then only selects rows. Source of the rules: the data sets' own evaluation code,
restated in `Trial.name` order: protocol / mode / direction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from reid_core.types import Modality, Split

if TYPE_CHECKING:  # rules need no torch, which costs whoever only lists files two seconds
    from reid_core.metrics import RetrievalScores

SYSU_GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SYSU_TRIALS = 10
SYSU_SHOTS = {"single": 1, "multi": 10}
LLCM_TRIALS = 10
_QUERIES_AT_ONCE, _PAIRS_AT_ONCE = 4096, 1 << 28


@dataclass(frozen=True)
class Trial:
    """One query set against one gallery.

    Attributes:
        name: "<protocol>/<mode>/<direction>"; trials of one name are averaged.
        number: trial number within the name.
        query: (Q,) row ids of the split.
        gallery: (G,) row ids of the split.
        ignore: keys (Q,) of the queries and (G,) of the gallery: a row does not exist for a query
            with the same key; None = all exist.
        cmc: "identity" counts repeats of an identity once (SYSU style), "image" counts images.
    """

    name: str
    number: int
    query: np.ndarray
    gallery: np.ndarray
    ignore: tuple[np.ndarray, np.ndarray] | None
    cmc: Literal["image", "identity"]

    def ignored(self, block: slice = slice(None)) -> np.ndarray | None:
        """(b, G) bool, rows that do not exist for queries of a block; None where all exist."""
        if self.ignore is None:
            return None
        asked, shown = self.ignore
        result: np.ndarray = np.equal.outer(asked[block], shown)
        return result


def sysu(split: Split) -> Iterator[Trial]:
    """SYSU-MM01: infrared queries, all-search and indoor-search, single- and multi-shot, 10 trials.

    The single-shot gallery draws with `random.seed(trial)` and the multi-shot gallery with
    `numpy.random.RandomState(trial)`, over identities in ascending order, cameras in order and
    files in sorted order, as the published galleries were drawn. A query of camera 3 does not see
    camera 2, which films the same place.

    Args:
        split: test rows of both modalities, sorted by (camera, pid, file).

    Raises:
        ValueError: a modality or every gallery camera is missing.
    """
    query = split.rows(Modality.INFRARED)
    if not len(query):
        raise ValueError("SYSU evaluation needs infrared test images, the split has none")
    for mode, cameras in SYSU_GALLERY_CAMERAS.items():
        rows = split.rows(Modality.VISIBLE)
        groups = _per_identity_and_camera(split, rows[np.isin(split.cameras[rows], cameras)])
        if not groups:
            raise ValueError(f"SYSU {mode}-search needs visible images of cameras {cameras}")
        for shot, count in SYSU_SHOTS.items():
            for number in range(SYSU_TRIALS):
                gallery = _draw_gallery(groups, count, number)
                # the third camera's queries do not see the second one, which films its place
                asked, shown = split.cameras[query], split.cameras[gallery]
                ignore = np.where(asked == 3, 1, 0), np.where(shown == 2, 1, -1)
                name = f"sysu/{mode}_{shot}/infrared_to_visible"
                yield Trial(name, number, query, gallery, ignore, "identity")


def both_ways(split: Split, *, name: str) -> Iterator[Trial]:
    """Every image of one modality against all of the other, both directions, nothing removed.

    RegDB and plain folders. RegDB's published scores are means over ten halves of the identities,
    that is over ten trained models; one test split gives one trial per direction.

    Args:
        split: test rows of both modalities; images of unknown identities only stand in the gallery.
        name: first part of the trials' names.

    Raises:
        ValueError: a modality is missing, or nobody is known.
    """
    for asked, shown in _directions(split):
        query = _known(split, split.rows(asked))
        yield Trial(f"{name}/{asked}_to_{shown}", 0, query, split.rows(shown), None, "image")


def llcm(split: Split) -> Iterator[Trial]:
    """LLCM: all images of one modality against one image per identity and camera of the other.

    Both directions, 10 galleries each, drawn with `random.seed(trial)` over identities in ascending
    order, cameras in order and files in sorted order. A query does not see images of its own
    identity by its own camera.

    Args:
        split: test rows of both modalities, sorted by (camera, pid, file).

    Raises:
        ValueError: a modality is missing.
    """
    both = np.stack([split.pids, split.cameras], axis=1)
    keys = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    for asked, shown in _directions(split):
        query = split.rows(asked)
        groups = _per_identity_and_camera(split, split.rows(shown))
        for number in range(LLCM_TRIALS):
            gallery = _draw_gallery(groups, 1, number)
            ignore = keys[query], keys[gallery]
            yield Trial(f"llcm/all/{asked}_to_{shown}", number, query, gallery, ignore, "identity")


def text_to_image(split: Split, *, name: str) -> Iterator[Trial]:
    """Every test caption against every test image, each image once, nothing removed.

    Args:
        split: test rows, captions and images.
        name: first part of the trial's name.

    Raises:
        ValueError: captions or images are missing.
    """
    query, gallery = split.rows(Modality.TEXT), split.rows(Modality.VISIBLE)
    if not len(query) or not len(gallery):
        raise ValueError("evaluation needs test captions and test images, the split lacks one")
    yield Trial(f"{name}/text_to_image", 0, _known(split, query), gallery, None, "image")


def manifest(split: Split) -> Iterator[Trial]:
    """Query rows against gallery rows of a manifest, nothing removed.

    Args:
        split: rows of two modalities, that of the queries first, as the reader of manifests
            orders them.

    Raises:
        ValueError: the rows are not of two modalities, or no query has a known identity.
    """
    kinds = list(dict.fromkeys(sample.modality for sample in split.samples))
    if len(kinds) != 2:
        raise ValueError(
            "a manifest is evaluated with queries of one modality and a gallery of another one; "
            f"its test rows are {' and '.join(kinds) or 'missing'}"
        )
    query = _known(split, split.rows(kinds[0]))
    yield Trial("manifest/all/query_to_gallery", 0, query, split.rows(kinds[1]), None, "image")


def _directions(split: Split) -> tuple[tuple[Modality, Modality], tuple[Modality, Modality]]:
    for modality in (Modality.VISIBLE, Modality.INFRARED):
        if not len(split.rows(modality)):
            raise ValueError(f"evaluation needs {modality} test images, the split has none")
    return (
        (Modality.INFRARED, Modality.VISIBLE),
        (Modality.VISIBLE, Modality.INFRARED),
    )


def _known(split: Split, rows: np.ndarray) -> np.ndarray:
    """Those of the rows whose identity is known."""
    rows = rows[split.pids[rows] >= 0]
    if not len(rows):
        raise ValueError("evaluation needs pids of the queries, none of them has one")
    return rows


def _per_identity_and_camera(split: Split, rows: np.ndarray) -> list[np.ndarray]:
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


def score(features: np.ndarray, pids: np.ndarray, trial: Trial) -> RetrievalScores:
    """Metrics of one trial.

    Args:
        features: (N, D) unit rows of the whole split.
        pids: (N,) pids of the whole split.
        trial: which rows meet.
    """
    gallery = features[trial.gallery].T
    return score_similarity(lambda block: features[trial.query[block]] @ gallery, pids, trial)


def score_similarity(
    similarity: Callable[[slice], np.ndarray], pids: np.ndarray, trial: Trial
) -> RetrievalScores:
    """Metrics of one trial, a block of queries at a time: ICFG-PEDES has 19,848 x 19,848 pairs.

    Args:
        similarity: slice of queries -> (their number, G), larger = more similar.
        pids: (N,) pids of the whole split.
        trial: which rows meet.
    """
    from reid_core.metrics import joined, retrieval_metrics

    parts = []
    step = min(_QUERIES_AT_ONCE, 1 + _PAIRS_AT_ONCE // max(1, len(trial.gallery)))
    for start in range(0, len(trial.query), step):
        block = slice(start, min(start + step, len(trial.query)))
        parts.append(
            retrieval_metrics(
                similarity(block),
                pids[trial.query[block]],
                pids[trial.gallery],
                ignore=trial.ignored(block),
                cmc=trial.cmc,
            )
        )
    return joined(parts)


def num_matched(pids: np.ndarray, trial: Trial) -> int:
    """Queries of a trial with a right answer among the gallery rows that exist for them."""
    right, _ = _right_and_shown(pids, trial)
    return int(((right > 0) & (pids[trial.query] >= 0)).sum())


def chance_rank1(pids: np.ndarray, trial: Trial) -> float:
    """Expected Rank-1, a fraction, of a random ranking: right / candidate images, averaged."""
    right, candidates = _right_and_shown(pids, trial)
    valid = (right > 0) & (pids[trial.query] >= 0)
    return float((right[valid] / candidates[valid]).mean())


def _right_and_shown(pids: np.ndarray, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Per query (Q,), the gallery rows of its pid and all, of those that exist for it."""
    asked, known = pids[trial.query], pids[trial.gallery]
    right, shown = _num_equal([asked], [known]), np.full(len(asked), len(known))
    if trial.ignore is not None:
        of_queries, of_gallery = trial.ignore
        right = right - _num_equal([asked, of_queries], [known, of_gallery])
        shown = shown - _num_equal([of_queries], [of_gallery])
    return right, shown


def _num_equal(query: Sequence[np.ndarray], gallery: Sequence[np.ndarray]) -> np.ndarray:
    """Per query (Q,), the gallery rows that equal it in every column."""
    both = np.concatenate([np.stack(gallery, axis=1), np.stack(query, axis=1)]).astype(np.int64)
    ids = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    num = len(gallery[0])
    result: np.ndarray = np.bincount(ids[:num], minlength=len(both))[ids[num:]]
    return result
