"""Any images in two folders, without lists."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from reid_core.datasets.files import ImageFiles
from reid_core.datasets.layouts import Layout
from reid_core.protocols import both_ways
from reid_core.types import Dataset, Modality, Sample, Split

_MODALITIES = (Modality.VISIBLE, Modality.INFRARED)
_SPLITS = ("train", "val", "test")
_UNKNOWN = -1


def read(root: str | os.PathLike[str]) -> Dataset:
    """Lists a plain tree; images are not opened.

    Expected, everything in brackets being optional::

        <root>/[train|val|test]/visible/[<identity>/...]/*.jpg
        <root>/[train|val|test]/infrared/[<identity>/...]/*.jpg

    Without the folders ``train``, ``val`` and ``test`` all images train. An image right below
    ``visible`` or ``infrared`` shows an unknown identity; otherwise the first folder names the
    identity, in both modalities and all splits.

    Args:
        root: folder that holds the above.

    Returns:
        Per split visible, then infrared records, sorted by path. ``pid`` numbers the names of the
        identities in sorted order; cameras are unknown.

    Raises:
        ValueError: there is no image at any of these places.
    """
    root = Path(root)
    tops = {split: f"{split}/" for split in _SPLITS if (root / split).is_dir()} or {"train": ""}
    files = ImageFiles(root)
    result = {
        (split, modality): _images(files, f"{top}{modality}")
        for split, top in tops.items()
        for modality in _MODALITIES
    }
    names = sorted({name for images in result.values() for _, name in images if name})
    pids = {name: number for number, name in enumerate(names)} | {"": _UNKNOWN}
    splits = [
        Split(
            tuple(
                Sample(image, modality, pids[name])
                for modality in _MODALITIES
                for image, name in result.get((split, modality), [])
            )
        )
        for split in _SPLITS
    ]
    if not any(splits):
        raise ValueError(
            f"no image below {root}: expected e.g. {root / 'visible' / 'a.jpg'} and "
            f"{root / 'infrared' / 'b.jpg'}, or {root / 'train' / 'visible' / 'anna' / 'a.jpg'}"
        )
    train, val, test = splits
    return Dataset("folder", root, train, val, test, files.notes())


def _images(files: ImageFiles, top: str) -> list[tuple[str, str]]:
    """(path relative to the root, name of the identity or "") below one folder, sorted by path."""
    images = []
    for image in files.below(top):
        inside = image[len(top) + 1 :]
        images.append((image, inside.partition("/")[0] if "/" in inside else ""))
    return sorted(images)


LAYOUT = Layout(
    "folder",
    "images in folders",
    read,
    partial(both_ways, name="folder/all"),
    headline="folder/all/infrared_to_visible",
    headline_words="infrared query against all visible images",
)
