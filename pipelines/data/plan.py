"""The global batches of an epoch, and the slices of them that each worker streams."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipelines.data.replacements import NUM_REPLACEMENTS, replacements
from pipelines.distributed.collectives import shares
from reid_core.types import OUTLIER, Modality


@dataclass(frozen=True)
class BatchShape:
    """A global batch: per image modality its rows and its views of each row."""

    rows: dict[Modality, int]
    views: dict[Modality, int]

    def parts(self, rank: int, world: int) -> dict[Modality, slice]:
        """One worker's rows of each modality."""
        return {m: shares(rows, world)[rank] for m, rows in self.rows.items()}

    def num_lines(self, rank: int, world: int) -> int:
        """Images that one worker receives per batch."""
        parts = self.parts(rank, world)
        return sum((part.stop - part.start) * self.views[m] for m, part in parts.items())


@dataclass(frozen=True)
class Plan:
    """The global batches of one epoch, per image modality (batches, B).

    Attributes:
        rows: int64 row ids of the modality.
        labels: int64 classes.
        seeds: (batches, B V) uint64 augmentation seeds, the V views of a row together.
        captions: (batches, B) int64 caption of each visible row, or None.
        kinds: of each batch; empty where all are alike. Classes of different kinds have nothing to
            do with each other.
        first: the batch to begin with; those before it were trained on by the run that is resumed.
    """

    rows: dict[Modality, np.ndarray]
    labels: dict[Modality, np.ndarray]
    seeds: dict[Modality, np.ndarray]
    captions: np.ndarray | None = None
    kinds: tuple[str, ...] = ()
    first: int = 0

    @property
    def num_batches(self) -> int:
        """Steps of the epoch."""
        return len(next(iter(self.rows.values())))

    @property
    def shape(self) -> BatchShape:
        """Of a global batch."""
        rows = {m: x.shape[1] for m, x in self.rows.items()}
        return BatchShape(rows, {m: self.seeds[m].shape[1] // rows[m] for m in rows})

    @cached_property
    def replacements(self) -> dict[Modality, np.ndarray]:
        """Per modality (batches, B, NUM_REPLACEMENTS) places of images of the same class, or -1.

        They are in batches of the same kind.
        """
        kinds = np.array(self.kinds or [""] * self.num_batches)
        places = {}
        for m, rows in self.rows.items():
            seeds, size = self.seeds[m][:, :: self.shape.views[m]], rows.shape[1]
            places[m] = np.full((*rows.shape, NUM_REPLACEMENTS), -1, dtype=np.int64)
            for kind in np.unique(kinds):
                own = np.flatnonzero(kinds == kind)
                inner = replacements(rows[own], self.labels[m][own], seeds[own])
                # counted through the batches of this kind -> through all of them
                places[m][own] = np.where(inner < 0, -1, own[inner // size] * size + inner % size)
        return places

    def repeats(self, caption_labels: np.ndarray | None) -> dict[Modality, int]:
        """Places of a global batch that one class has at most, per modality.

        Args:
            caption_labels: (n captions,) classes of the captions, where the plan has some. A place
                counts for each class that a replacement may bring there.
        """
        most = {m: _most_equal(labels) for m, labels in self.labels.items()}
        if self.captions is not None and caption_labels is not None:
            others = np.moveaxis(self.replacements[Modality.VISIBLE], -1, 0)
            whole = [self.captions, *(self.captions.ravel()[places] for places in others)]
            classes = np.sort(caption_labels[np.stack(whole, axis=-1)], axis=-1)
            classes[..., 1:][classes[..., 1:] == classes[..., :-1]] = OUTLIER
            most[Modality.TEXT] = _most_equal(classes.reshape(len(classes), -1))
        return most

    def rank_slice(self, modality: Modality, batches: slice, rank: int, world: int) -> pa.Table:
        """Rank's share of some consecutive global batches, batch-major, a line per view.

        Columns row and caption are followed by those of the replacements: row1, caption1, ...
        """
        rows, seeds = self.rows[modality][batches], self.seeds[modality][batches]
        num, size = rows.shape
        views = seeds.shape[1] // size
        part = shares(size, world)[rank]
        length = views * (part.stop - part.start)

        def per_view(columns: np.ndarray) -> np.ndarray:
            return np.repeat(columns[:, part], views, axis=1).ravel()

        columns = {
            "row": per_view(rows),
            "label": per_view(self.labels[modality][batches]),
            "batch": np.repeat(np.arange(batches.start, batches.start + num), length),
            "rank": np.full(num * length, rank),
            "position": np.tile(np.arange(views * part.start, views * part.stop), num),
            "view": np.tile(np.arange(length) % views, num),
            "seed": seeds[:, views * part.start : views * part.stop].ravel(),
        }
        if self.captions is not None:
            columns["caption"] = per_view(self.captions[batches])
        for number, places in enumerate(
            np.moveaxis(self.replacements[modality][batches], -1, 0), 1
        ):
            for name, whole in (("row", self.rows[modality]), ("caption", self.captions)):
                if whole is not None:
                    chosen = np.where(places < 0, -1, whole.ravel()[places])
                    columns[f"{name}{number}"] = per_view(chosen)
        return pa.table(columns)


def _most_equal(labels: np.ndarray) -> int:
    """How often a class stands in one row of (batches, B) labels at most; -1 is none."""
    if not labels.size:
        return 0
    ordered = np.sort(labels, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    _, lengths = np.unique(np.cumsum(first.ravel()), return_counts=True)
    return int(lengths[ordered[first] != OUTLIER].max(initial=0))
