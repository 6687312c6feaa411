"""RegDB: one visible and one thermal camera side by side, ten random halves of the identities."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from reid_core.datasets.layouts import Layout
from reid_core.datasets.lists import read_identities, unlisted_identities
from reid_core.protocols import both_ways
from reid_core.types import Dataset, Modality, Sample, Split

NUM_TRIALS = 10
_LISTS = {Modality.VISIBLE: ("visible", 1), Modality.INFRARED: ("thermal", 2)}  # name, camera


def read(root: str | os.PathLike[str], *, trial: int = 1) -> Dataset:
    """Lists one trial of a RegDB tree; images are not opened.

    Expected: ``Visible/<id>/*.bmp``, ``Thermal/<id>/*.bmp`` and
    ``idx/{train,test}_{visible,thermal}_{1..10}.txt`` with lines "relative/path label". Published
    results train one model per trial and average over the trials.

    Args:
        root: folder that holds ``Visible``, ``Thermal`` and ``idx``.
        trial: which half of the identities trains, 1 to 10.

    Returns:
        Visible, then infrared records in the order of the lists; ``pid`` is the folder's number,
        camera 1 is the visible and 2 the thermal one. There is no validation split.

    Raises:
        ValueError: a folder or list is missing or not as above.

    Reference: Nguyen et al., Person Recognition System Based on a Combination of Body Images
        from Visible Light and Thermal Cameras, Sensors 2017.
    """
    root = Path(root)
    if trial not in range(1, NUM_TRIALS + 1):
        raise ValueError(f"trial={trial} is unknown: RegDB has the trials 1 to {NUM_TRIALS}")
    for folder in ("Visible", "Thermal", "idx"):
        if not (root / folder).is_dir():
            raise ValueError(
                f"{root / folder} is missing: a RegDB root holds Visible, Thermal and idx"
            )
    train, test = (_list_split(root, split, trial) for split in ("train", "test"))
    folders = {path.name for name in ("Visible", "Thermal") for path in (root / name).iterdir()}
    listed = {Path(sample.image).parent.name for sample in (*train.samples, *test.samples)}
    notes = tuple(unlisted_identities(folders, listed, f"idx for trial {trial}"))
    return Dataset("regdb", root, train, Split(()), test, notes)


def _list_split(root: Path, split: str, trial: int) -> Split:
    samples: list[Sample] = []
    for modality, (name, camera) in _LISTS.items():
        path = root / "idx" / f"{split}_{name}_{trial}.txt"
        images = read_identities(path, example=f"{name.capitalize()}/12/name_12.bmp 0")
        samples += [Sample(image, modality, pid, camera) for image, pid in images]
    return Split(tuple(samples))


LAYOUT = Layout(
    "regdb",
    "RegDB",
    read,
    partial(both_ways, name="regdb/all"),
    headline="regdb/all/visible_to_infrared",
    headline_words="RegDB, visible query against thermal gallery, one of the 10 trials",
    published={
        split: {modality: {"ids": 206, "images": 2_060} for modality in ("visible", "infrared")}
        for split in ("train", "test")
    },
    num_trials=NUM_TRIALS,
)
