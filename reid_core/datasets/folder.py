"""Any images in two folders, without lists."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
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
    identity, in both modalities and all splits, however its accents are coded.

    Args:
        root: folder that holds the above.

    Returns:
        Per split visible, then infrared records, sorted by path. ``pid`` numbers the names of the
        identities in sorted order; cameras are unknown. What holds images and is none of these
        folders is not read and stands in the notes.

    Raises:
        ValueError: there is no image at any of these places, or a folder with images has one of
            these names in another case.
    """
    root = Path(root)
    tops = {split: f"{split}/" for split in _SPLITS if (root / split).is_dir()} or {"train": ""}
    files = ImageFiles(root)
    beside = tuple(_not_read(files, root, [top.rstrip("/") for top in tops.values()]))
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
    return Dataset("folder", root, train, val, test, (*beside, *files.notes()))


def _not_read(files: ImageFiles, root: Path, tops: list[str]) -> Iterator[str]:
    """Sentences about what holds images beside the folders that are read.

    Args:
        files: of the root.
        root: of the tree.
        tops: folders that hold those of the modalities; "" is the root.

    Raises:
        ValueError: the name of such a folder differs from one that is read in its case alone.
    """
    modalities = tuple(map(str, _MODALITIES))
    places: dict[str, tuple[str, ...]] = dict.fromkeys(tops, modalities)
    if "" not in places:
        places = {"": _SPLITS, **places}
    for place, names in places.items():
        folders, num_images = files.besides(place, names)
        folders = [one for one in folders if not _is_read(root / one, names)]
        for one in folders:
            meant = Path(one).name.lower()
            if Path(one).name != meant and meant in (*names, *(() if place else _SPLITS)):
                raise ValueError(
                    f"{root / one} holds images and is not read: {meant} is written in small "
                    "letters, so rename it, or move its images"
                )
        if folders:
            hold = "hold" if len(folders) > 1 else "holds"
            yield f"not read: {', '.join(folders)}, which {hold} images; read are {_listed(names)}"
        if num_images:
            where = place or "the root"
            yield f"not read: {num_images:,} images right in {where}; read are {_listed(names)}"


def _is_read(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder is one that is read, by a link or where case does not count."""
    others = (path.with_name(name) for name in names)
    return any(other.is_dir() and other.samefile(path) for other in others)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _images(files: ImageFiles, top: str) -> list[tuple[str, str]]:
    """(path relative to the root, name of the identity or "") below one folder, sorted by path."""
    images = []
    for image in files.below(top):
        inside = image[len(top) + 1 :]
        images.append((image, _name(inside)))
    return sorted(images)


def identity_of(image: str) -> str:
    """Name of the identity that an image of `read` shows, "" where it is unknown."""
    split, _, below = image.partition("/")
    return _name((below if split in _SPLITS else image).partition("/")[2])


def _name(inside: str) -> str:
    """The first folder below that of a modality; accents are coded in two ways (macOS, Linux)."""
    return unicodedata.normalize("NFC", inside.partition("/")[0]) if "/" in inside else ""


LAYOUT = Layout(
    "folder",
    "images in folders",
    read,
    partial(both_ways, name="folder/all"),
    headline="folder/all/infrared_to_visible",
    headline_words="infrared query against all visible images",
)
