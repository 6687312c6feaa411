"""Which images of a data set a run's encoder takes for nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.data import roots
from pipelines.data.places import ROOT_ALONE, Trusted
from pipelines.errors import UserError
from pipelines.evaluation.checkpoint import features_of
from pipelines.evaluation.encoder import open_encoder
from reid_core.datasets.counts import SPLITS
from reid_core.near_duplicates import near_duplicates as sets_of
from reid_core.types import Modality, Split


def near_duplicates(
    run: Path, kind: str, root: Path, *, above: float, trusted: Trusted = ROOT_ALONE
) -> tuple[list[list[str]], str]:
    """Sets of images of one modality whose vectors hang together, over all splits.

    Args:
        run: checkpoint folder or run directory.
        kind, root, trusted: of the data set, see `pipelines.data.check.check`.
        above: cosine from which two images are nearly the same.

    Returns:
        The sets, and a sentence with their numbers.

    Raises:
        UserError: no such run, images that it does not embed, or `above` is no such cosine.
    """
    if not 0 < above <= 1:
        raise UserError(f"--above {above:g}: a cosine above 0 and up to 1, such as 0.98")
    loaded = open_encoder(run)
    dataset = roots.read(kind, root if "://" in str(root) else root.resolve(), trusted=trusted)
    sets: list[list[str]] = []
    across = 0
    for modality in (m for m in loaded.modalities if m != Modality.TEXT):
        parts = [getattr(dataset, name) for name in SPLITS]
        own = [part.take(part.rows(modality)) for part in parts]
        rows = Split(tuple(sample for part in own for sample in part.samples))
        split_of = np.repeat(np.arange(len(own)), [len(part) for part in own])
        for one in sets_of(features_of(loaded, rows, dataset.root), above=above):
            sets.append([rows.samples[int(place)].image for place in one])
            across += len(set(split_of[one].tolist())) > 1
    total = sum(map(len, sets))
    note = f"near-duplicates (cosine from {above:g} on): {total:,} images in {len(sets):,} sets"
    return sets, note + (f", {across:,} of them across splits" if across else "")
