"""SYSU-MM01: six cameras, four in color and two in infrared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reid_core.datasets.files import ImageFiles
from reid_core.datasets.layouts import Layout
from reid_core.datasets.lists import read_ids, unlisted_identities
from reid_core.protocols import sysu
from reid_core.types import Dataset, Modality, Sample, Split

CAMERAS = {
    1: Modality.VISIBLE,
    2: Modality.VISIBLE,
    3: Modality.INFRARED,
    4: Modality.VISIBLE,
    5: Modality.VISIBLE,
    6: Modality.INFRARED,
}
_SPLITS = ("train", "val", "test")


def read(root: str | os.PathLike[str]) -> Dataset:
    """Lists a SYSU-MM01 tree; images are not opened.

    Expected: ``cam1`` to ``cam6``, each with ``<4-digit id>/<frame>.jpg``, and
    ``exp/{train,val,test}_id.txt`` with comma-separated ids. Published results train on
    train + val.

    Args:
        root: folder that holds ``cam1`` to ``cam6`` and ``exp``.

    Returns:
        Records of each split sorted by (camera, id, file name); ``pid`` is the folder's number.

    Raises:
        ValueError: a folder or list is missing, empty or unreadable as ids.

    Reference: Wu et al., RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017.
    """
    root = Path(root)
    for camera in CAMERAS:
        if not (root / f"cam{camera}").is_dir():
            raise ValueError(
                f"{root / f'cam{camera}'} is missing: a SYSU-MM01 root holds cam1 to cam6 and exp"
            )
    lists = {split: root / "exp" / f"{split}_id.txt" for split in _SPLITS}
    ids = {split: read_ids(path) for split, path in lists.items()}
    files = ImageFiles(root)
    train, val, test = (_list_split(root, split, ids[split], files) for split in _SPLITS)
    notes = (*files.notes(), *files.further_cameras("", CAMERAS), *_unlisted(root, ids))
    return Dataset("sysu", root, train, val, test, notes)


def _list_split(root: Path, split: str, ids: list[int], files: ImageFiles) -> Split:
    """All images of some identities. Not everyone was seen by every camera."""
    samples = [
        Sample(image, modality, pid, camera)
        for camera, modality in CAMERAS.items()
        for pid in ids
        for image in files.directly_in(f"cam{camera}/{pid:04d}")
    ]
    if not samples:
        raise ValueError(
            f"no image of any of the {len(ids)} identities of exp/{split}_id.txt: expected e.g. "
            f"{root / f'cam1/{ids[0]:04d}/0001.jpg'}"
        )
    return Split(tuple(samples))


def _unlisted(root: Path, ids: dict[str, list[int]]) -> Iterator[str]:
    folders = {path.name for camera in CAMERAS for path in (root / f"cam{camera}").iterdir()}
    listed = {f"{pid:04d}" for split in ids.values() for pid in split}
    return unlisted_identities(folders, listed, "exp")


LAYOUT = Layout(
    "sysu",
    "SYSU-MM01",
    read,
    sysu,
    headline="sysu/all_single/infrared_to_visible",
    headline_words="SYSU-MM01 all-search, single-shot, infrared query against visible gallery, "
    "mean of 10 galleries",
    published={
        "train+val": {
            "visible": {"ids": 395, "cameras": 4, "images": 22_258},
            "infrared": {"ids": 395, "cameras": 2, "images": 11_909},
        },
        "test": {
            "visible": {"ids": 96, "cameras": 4},
            "infrared": {"ids": 96, "cameras": 2, "images": 3_803},
        },
    },
)
