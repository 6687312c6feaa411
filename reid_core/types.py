"""Nouns shared by everything else, and the legend of the shape letters used in docstrings.

Shapes: N rows of a data set, B rows of a batch, P clusters and K instances of a P x K batch,
C clusters (or classes), D feature width, H x W image, Q queries, G gallery rows.
Labels: class ids from 0; -1 is an outlier everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # whoever only lists files needs no torch, which costs a process two seconds
    from torch import Tensor

OUTLIER = -1
MAX_MEGAPIXELS = 50.0
"""Images with more pixels are refused unless a recipe says otherwise."""


class Modality(StrEnum):
    """What a row was seen with. The papers' "rgb" and "ir" are VISIBLE and INFRARED here."""

    VISIBLE = "visible"
    INFRARED = "infrared"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of one identity, or one sentence about an image.

    Attributes:
        image: path relative to the root of the data set, with forward slashes; of a TEXT record
            the image that the sentence describes.
        modality: VISIBLE, INFRARED or TEXT.
        pid: pid, -1 where unknown. Read by evaluation and diagnostics only.
        camera: camera id as the data set numbers it, -1 where unknown.
        caption: the sentence of a TEXT sample, else empty.
        tracklet: number of the track that the image was cut from, -1 where unknown. Images of one
            tracklet show one identity; it says nothing across tracklets.
        time: when it was seen, with its zone; None where unknown. Galleries filter by it.
    """

    image: str
    modality: Modality
    pid: int = -1
    camera: int = -1
    caption: str = ""
    tracklet: int = -1
    time: datetime | None = None


@dataclass(frozen=True)
class Split:
    """Rows of one split in a fixed order; a row's index is its identity everywhere else."""

    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def pids(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([sample.pid for sample in self.samples], dtype=np.int64)

    @cached_property
    def cameras(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([sample.camera for sample in self.samples], dtype=np.int64)

    @cached_property
    def tracklets(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([sample.tracklet for sample in self.samples], dtype=np.int64)

    def rows(self, modality: Modality) -> np.ndarray:
        """Indices (n,) int64 of the rows of one modality, ascending."""
        return np.array(
            [i for i, sample in enumerate(self.samples) if sample.modality == modality],
            dtype=np.int64,
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        """The given rows, in the given order."""
        return Split(tuple(self.samples[int(i)] for i in rows))


@dataclass(frozen=True)
class Dataset:
    """What a loader returns: the splits of one data set below one root.

    Attributes:
        kind: layout name, e.g. "sysu".
        root: folder (or URI) that the records' paths are relative to.
        train, val, test: val is empty where the layout has none.
        notes: sentences about what was passed over while it was listed.
        size: (height, width) that all images were resized to; None where they are the original's.
    """

    kind: str
    root: Path
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """One worker's share of one global training batch of one modality. It has no pid.

    Attributes:
        images: (B V, 3, H, W) uint8; the V views of a row stand together.
        rows: (B,) int64 row ids within the modality of the training split.
        labels: (B,) int64 pseudo or given classes.
        captions: (B,) int64 row ids of the captions that belong to the images, or None.
        tokens: (B, 77) int64 token ids of those captions, or None.
        planned: (B,) int64 row whose unreadable image this one replaces, -1 where none; or None.
        kind: of the global batch, in the method's words; "" where all of an epoch are alike.
    """

    images: Tensor
    rows: Tensor
    labels: Tensor
    captions: Tensor | None = None
    tokens: Tensor | None = None
    planned: Tensor | None = None
    kind: str = ""

    def cut(self, rows: slice) -> Batch:
        """Some of its B rows, without a step, and all views of them."""
        views = len(self.images) // len(self.rows)
        of_views = slice(views * rows.start, views * rows.stop)
        columns: dict[str, Any] = {
            name: column
            if column is None or isinstance(column, str)
            else column[of_views if name == "images" else rows]
            for name, column in vars(self).items()
        }
        return Batch(**columns)


@dataclass(frozen=True)
class Term:
    """One loss of a step: a mean over the valid rows of this worker's slice.

    Several workers combine terms as sum(mean * count) / sum(count), which is why the count travels
    with the mean.

    Attributes:
        mean: scalar that carries the graph.
        count: number of valid rows behind it, possibly 0.
        weight: factor in the total loss.
    """

    mean: Tensor
    count: Tensor | int
    weight: float = 1.0
