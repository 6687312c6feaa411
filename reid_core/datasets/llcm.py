"""LLCM: nine low-light cameras that film in color and, but for camera 3, in near infrared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from reid_core.datasets.files import ImageFiles
from reid_core.datasets.layouts import Layout
from reid_core.datasets.lists import read_identities, read_ids, unlisted_identities
from reid_core.protocols import llcm
from reid_core.types import Dataset, Modality, Sample, Split

CAMERAS = {
    Modality.VISIBLE: (1, 2, 3, 4, 5, 6, 7, 8, 9),
    Modality.INFRARED: (1, 2, 4, 5, 6, 7, 8, 9),
}
_NAMES = {Modality.VISIBLE: "vis", Modality.INFRARED: "nir"}
_CAMERA_IN_NAME = re.compile(r"_c(\d+)_")


def read(root: str | os.PathLike[str]) -> Dataset:
    """Lists an LLCM tree; images are not opened.

    Expected: ``idx/train_{vis,nir}.txt`` with lines "relative/path label" such as
    ``vis/0001/0001_c01_s185535_f7010_vis.jpg 0``, ``idx/test_id.txt`` with comma-separated ids,
    and ``test_{vis,nir}/cam<n>/<4-digit id>/*.jpg``.

    Args:
        root: folder that holds ``idx``, ``test_vis`` and ``test_nir``.

    Returns:
        Visible, then infrared records: training records in the order of the lists, test records
        sorted by (camera, id, file name). ``pid`` is the folder's number; a training image's
        camera is read from its name. There is no validation split.

    Raises:
        ValueError: a folder or list is missing or not as above.

    Reference: Zhang and Wang, Diverse Embedding Expansion Network and Low-Light Cross-Modality
        Benchmark for Visible-Infrared Person Re-identification, CVPR 2023.
    """
    root = Path(root)
    for name in _NAMES.values():
        if not (root / f"test_{name}").is_dir():
            raise ValueError(
                f"{root / f'test_{name}'} is missing: an LLCM root holds idx, test_vis and test_nir"
            )
    ids = read_ids(root / "idx" / "test_id.txt")
    train = _train(root)
    files = ImageFiles(root)
    test = _test(root, ids, files)
    further = (files.further_cameras(f"test_{name}", CAMERAS[m]) for m, name in _NAMES.items())
    notes = (*files.notes(), *chain.from_iterable(further), *_unlisted(root, ids))
    return Dataset("llcm", root, train, Split(()), test, notes)


def _unlisted(root: Path, ids: list[int]) -> Iterator[str]:
    cameras = (root / f"test_{name}" / f"cam{n}" for m, name in _NAMES.items() for n in CAMERAS[m])
    folders = {path.name for camera in cameras if camera.is_dir() for path in camera.iterdir()}
    return unlisted_identities(folders, {f"{pid:04d}" for pid in ids}, "idx")


def _train(root: Path) -> Split:
    samples: list[Sample] = []
    for modality, name in _NAMES.items():
        example = f"{name}/0001/0001_c01_s185535_f7010_{name}.jpg 0"
        images = read_identities(root / "idx" / f"train_{name}.txt", example=example)
        samples += [Sample(image, modality, pid, _camera(image)) for image, pid in images]
    return Split(tuple(samples))


def _camera(image: str) -> int:
    result = _CAMERA_IN_NAME.search(Path(image).name)
    return int(result[1]) if result else -1


def _test(root: Path, ids: list[int], files: ImageFiles) -> Split:
    samples: list[Sample] = []
    for modality, name in _NAMES.items():
        result = [
            Sample(image, modality, pid, camera)
            for camera in CAMERAS[modality]
            for pid in ids
            for image in files.directly_in(f"test_{name}/cam{camera}/{pid:04d}")
        ]
        if not result:
            raise ValueError(
                f"no {modality} image of any of the {len(ids)} identities of idx/test_id.txt: "
                f"expected e.g. {root / f'test_{name}/cam1/{ids[0]:04d}'}/*.jpg"
            )
        samples += result
    return Split(tuple(samples))


LAYOUT = Layout(
    "llcm",
    "LLCM",
    read,
    llcm,
    headline="llcm/all/infrared_to_visible",
    headline_words="LLCM, infrared query against one visible image per identity and camera, "
    "mean of 10 galleries",
    published={
        "train": {
            "visible": {"ids": 713, "images": 16_946},
            "infrared": {"ids": 713, "images": 13_975},
        },
        "test": {
            "visible": {"ids": 351, "cameras": 9},
            "infrared": {"ids": 351, "cameras": 8},
        },
    },
)
