"""SYSU-MM01: six cameras, four in colour and two in infrared."""

from __future__ import annotations

import os
from pathlib import Path

from reid_core.types import Dataset, Modality, Record, Split

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
    """Lists a SYSU-MM01 tree; pictures are not opened.

    Expected: ``cam1`` to ``cam6``, each with ``<4-digit id>/<frame>.jpg``, and
    ``exp/{train,val,test}_id.txt`` with comma-separated ids. Published results train on
    train + val.

    Args:
        root: folder that holds ``cam1`` to ``cam6`` and ``exp``.

    Returns:
        Records of each split sorted by (camera, id, file name); ``pid`` is the folder's number.

    Raises:
        ValueError: a folder or list is missing, empty or unreadable as ids, or splits share ids.

    Reference: Wu et al., RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017.
    """
    root = Path(root)
    for camera in CAMERAS:
        if not (root / f"cam{camera}").is_dir():
            raise ValueError(
                f"{root / f'cam{camera}'} is missing: a SYSU-MM01 root holds cam1 to cam6 and exp"
            )
    ids = {split: _read_ids(root / "exp" / f"{split}_id.txt") for split in _SPLITS}
    _check_disjoint(root, ids)
    return Dataset("sysu", root, *(_list_split(root, split, ids[split]) for split in _SPLITS))


def _read_ids(path: Path) -> list[int]:
    """Ids of one list, ascending."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: it names the people of a split, e.g. 1,2,5")
    fields = path.read_text().replace("\n", ",").split(",")
    try:
        ids = sorted({int(field) for field in fields if field.strip()})
    except ValueError as error:
        raise ValueError(f"{path} must hold comma-separated ids: {error}") from error
    if not ids:
        raise ValueError(f"{path} is empty: it should name the people of a split, e.g. 1,2,5")
    return ids


def _check_disjoint(root: Path, ids: dict[str, list[int]]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(set(ids[first]) & set(ids[second]))
        if shared:
            raise ValueError(
                f"{root / 'exp' / f'{first}_id.txt'} and {second}_id.txt share {len(shared)} ids "
                f"({', '.join(map(str, shared[:5]))}): people of different splits must differ"
            )


def _list_split(root: Path, split: str, ids: list[int]) -> Split:
    """All pictures of some people. Not everyone was seen by every camera."""
    records = []
    for camera, modality in CAMERAS.items():
        for pid in ids:
            folder = f"cam{camera}/{pid:04d}"
            try:
                names = sorted(os.listdir(root / folder))
            except FileNotFoundError:
                continue
            records += [
                Record(f"{folder}/{name}", modality, pid, camera)
                for name in names
                if name.lower().endswith(".jpg")
            ]
    if not records:
        raise ValueError(
            f"no picture of any of the {len(ids)} people of exp/{split}_id.txt: expected e.g. "
            f"{root / f'cam1/{ids[0]:04d}/0001.jpg'}"
        )
    return Split(tuple(records))
