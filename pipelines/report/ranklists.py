"""Queries with their best answers as images: some that went best, middling and worst."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipelines.storage.shards import read_bytes
from reid_core.images import open_rgb

NUM_ANSWERS = 8
NUM_QUERIES_PER_GROUP = 3
_HEIGHT_PX = 160  # A surveillance crop of 64 pixels is recognizable from here on.
NEEDED = ("ap", "query_images", "gallery_images", "top", "top_similarity", "top_correct")


@dataclass(frozen=True)
class Answer:
    """One gallery image in a rank list.

    Attributes:
        image: data URI, None where the image cannot be read.
        path: where it lies below the data set's root.
        similarity: to the query.
        right: whether it shows the query's identity.
    """

    image: str | None
    path: str
    similarity: float
    right: bool


@dataclass(frozen=True)
class RankList:
    """One query and its best answers.

    Attributes:
        image: data URI of the query, None where the image cannot be read.
        path: where it lies below the data set's root; of a caption the image that it describes.
        caption: the sentence that is searched with, "" where the query is an image.
        ap: average precision of the query, %.
        ap_before: the same for the start, None where unknown.
        answers: best first.
    """

    image: str | None
    path: str
    caption: str
    ap: float
    ap_before: float | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Group:
    """Rank lists that belong under one heading."""

    title: str
    words: str
    lists: tuple[RankList, ...]


def groups(
    final: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray] | None, *, root: Path
) -> list[Group]:
    """Rank lists of the best, middling and worst queries.

    Args:
        final: arrays of evaluation/final.npz, with every key of `NEEDED`.
        start: arrays of evaluation/start.npz, None where there is none.
        root: folder that the image paths are relative to.

    Returns:
        Up to three groups of up to `NUM_QUERIES_PER_GROUP` queries; no query is shown twice.
    """
    before = None
    if start is not None and np.array_equal(start.get("query_images", ()), final["query_images"]):
        before = start.get("ap")
    best, middle, worst = choose(final["ap"], final["query_images"], num=NUM_QUERIES_PER_GROUP)

    def lists(queries: list[int]) -> tuple[RankList, ...]:
        return tuple(_rank_list(final, before, query, root) for query in queries)

    result = [
        Group("Went best", "Queries with the highest average precision.", lists(best)),
        Group("In the middle", "Half of all queries did better, half did worse.", lists(middle)),
        Group("Went worst", "Queries with the lowest average precision.", lists(worst)),
    ]
    return [group for group in result if group.lists]


def choose(
    ap: np.ndarray, images: np.ndarray, *, num: int
) -> tuple[list[int], list[int], list[int]]:
    """Best, middling and worst queries, of different identities where folders tell them apart.

    Args:
        ap: (Q,) average precision; NaN marks a query that has no right answer.
        images: (Q,) paths; images of one identity share the name of their folder in most layouts.
        num: queries per group; fewer where there are not enough.

    Returns:
        Three lists of query indices without overlap.
    """
    order = np.argsort(-ap, kind="stable")
    order = order[np.isfinite(ap[order])]
    num = min(num, len(order) // 3) if len(order) >= 3 else len(order)
    distance = np.abs(np.arange(len(order)) - (len(order) - 1) / 2)
    taken: set[int] = set()
    chosen = []
    for candidates in (order, order[::-1], order[np.argsort(distance, kind="stable")]):
        free = [int(query) for query in candidates if int(query) not in taken]
        picked = _different_identities(free, images)[:num]
        taken.update(picked)
        chosen.append(picked)
    best, worst, middle = chosen
    return best, middle, worst


def below(root: Path, path: str) -> Path:
    """An image below the root of its data set.

    Raises:
        ValueError: the path is absolute or climbs out with "..": a page shows nothing else.
    """
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{path} lies outside the data set: it is not shown")
    return root / relative


def thumbnail(root: Path, path: str) -> str | None:
    """An image as a data URI.

    Args:
        root: folder of the data set.
        path: below it; one that is absolute or climbs out with ".." is refused.

    Returns:
        JPEG of a fixed height, None where there is no readable image.
    """
    try:
        image = open_rgb(read_bytes(below(root, path)))
    except (OSError, ValueError):
        return None
    width = max(round(image.width * _HEIGHT_PX / image.height), 1)
    buffer = io.BytesIO()
    small = image.resize((width, _HEIGHT_PX), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _different_identities(queries: list[int], images: np.ndarray) -> list[int]:
    """The same queries; each folder's first comes before any folder's second."""
    seen: set[str] = set()
    first: list[int] = []
    later: list[int] = []
    for query in queries:
        identity = PurePosixPath(str(images[query])).parent.name
        (later if identity in seen else first).append(query)
        seen.add(identity)
    return first + later


def _rank_list(
    final: Mapping[str, np.ndarray], before: np.ndarray | None, query: int, root: Path
) -> RankList:
    answers = []
    for rank, row in enumerate(final["top"][query][:NUM_ANSWERS]):
        path = str(final["gallery_images"][row])
        answers.append(
            Answer(
                image=thumbnail(root, path),
                path=path,
                similarity=float(final["top_similarity"][query, rank]),
                right=bool(final["top_correct"][query, rank]),
            )
        )
    path = str(final["query_images"][query])
    captions = final.get("query_captions")
    return RankList(
        image=thumbnail(root, path),
        path=path,
        caption="" if captions is None else str(captions[query]),
        ap=100 * float(final["ap"][query]),
        ap_before=None if before is None else 100 * float(before[query]),
        answers=tuple(answers),
    )
