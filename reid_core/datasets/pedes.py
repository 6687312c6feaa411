"""Images with sentences about them: CUHK-PEDES, ICFG-PEDES and RSTPReid.

Each is one JSON list with an object per image. An image gives one VISIBLE sample, each of its
captions one TEXT record that names the image.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reid_core.datasets.cell_values import whole_number
from reid_core.datasets.layouts import Layout, Number
from reid_core.protocols import text_to_image
from reid_core.types import Dataset, Modality, Sample, Split

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_CAMERA_IN_NAME = re.compile(r"_c(\d+)_")


@dataclass(frozen=True)
class _Source:
    """Where one data set keeps its list, and what the path of an image is called in it."""

    kind: str
    folder: str
    lists: tuple[str, ...]
    path_key: str
    cameras: bool = False


_CUHK = _Source("cuhk", "CUHK-PEDES", ("reid_raw.json",), "file_path")
_ICFG = _Source("icfg", "ICFG-PEDES", ("ICFG-PEDES.json", "ICFG_PEDES.json"), "file_path")
_RSTP = _Source("rstp", "RSTPReid", ("data_captions.json",), "img_path", cameras=True)


def read_cuhk(root: str | os.PathLike[str]) -> Dataset:
    """Lists CUHK-PEDES; images are not opened.

    Expected: ``CUHK-PEDES/reid_raw.json``, objects with ``split``, ``captions``, ``file_path``
    and ``id``, and the images at ``CUHK-PEDES/imgs/<file_path>``.

    Args:
        root: folder that holds ``CUHK-PEDES``.

    Returns:
        Per split the images in the order of the list, then their captions. Empty captions are
        left out with a warning.

    Raises:
        ValueError: the list or the folder of images is missing, or an object is not as above.

    Reference: Li et al., Person Search with Natural Language Description, CVPR 2017.
    """
    return _read(Path(root), _CUHK)


def read_icfg(root: str | os.PathLike[str]) -> Dataset:
    """Lists ICFG-PEDES: ``ICFG-PEDES/ICFG-PEDES.json`` (or ``ICFG_PEDES.json``) and ``imgs``.

    As `read_cuhk`. The folders ``imgs/train`` and ``imgs/test`` are those of MSMT17 and not the
    split, which stands in the list alone; there is no validation split.

    Reference: Ding et al., Semantically Self-Aligned Network for Text-to-Image Part-aware Person
        Re-identification, 2021.
    """
    return _read(Path(root), _ICFG)


def read_rstp(root: str | os.PathLike[str]) -> Dataset:
    """Lists RSTPReid: ``RSTPReid/data_captions.json`` and a flat ``imgs``.

    As `read_cuhk`, with the image's path in ``img_path`` and the camera in its name.

    Reference: Zhu et al., DSSL: Deep Surroundings-identity Separation Learning for Text-based
        Person Retrieval, ACM MM 2021.
    """
    return _read(Path(root), _RSTP)


def _read(root: Path, source: _Source) -> Dataset:
    folder = root / source.folder
    path = next((folder / name for name in source.lists if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder / source.lists[0]} is missing: the root is the folder that holds "
            f"{source.folder}, which holds {source.lists[0]} and imgs"
        )
    if not (folder / "imgs").is_dir():
        raise ValueError(f"{folder / 'imgs'} is missing: it holds the images that {path} lists")
    images: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    texts: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    num_empty = 0
    for number, entry in enumerate(_entries(path)):
        split, sample, captions = _parse(entry, f"{path}, object {number}", source)
        images[split].append(sample)
        said = [caption.strip() for caption in captions if caption.strip()]
        num_empty += len(captions) - len(said)
        texts[split] += [
            Sample(sample.image, Modality.TEXT, sample.pid, sample.camera, caption)
            for caption in said
        ]
    if num_empty:
        log.warning("%s: %d empty captions were left out", path, num_empty)
    for split in ("train", "test"):
        if not images[split]:
            raise ValueError(f'{path} has no object with "split": "{split}"')
    train, val, test = (Split((*images[split], *texts[split])) for split in _SPLITS)
    return Dataset(source.kind, root, train, val, test)


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: take the file as it was published") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a complete JSON file ({str(error)[:100]}): take it as it was published"
        ) from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold one list with an object per image")
    return entries


def _parse(entry: Any, where: str, source: _Source) -> tuple[str, Sample, list[str]]:
    """Split, visible sample and captions of one object."""
    try:
        split, name = entry["split"].lower(), entry[source.path_key]
        pid, captions = whole_number(entry["id"], "id", where), entry["captions"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} must have split, {source.path_key}, captions and id, each of its kind; it is "
            f"{str(entry)[:100]}"
        ) from error
    if split not in _SPLITS:
        raise ValueError(f"{where}: split {entry['split']!r} is none of {', '.join(_SPLITS)}")
    if not isinstance(name, str):
        raise ValueError(f"{where}: {source.path_key} must be text, not {str(name)[:60]!r}")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{where}: captions must be a list of sentences")
    camera = _CAMERA_IN_NAME.search(name) if source.cameras else None
    sample = Sample(
        f"{source.folder}/imgs/{name}", Modality.VISIBLE, pid, int(camera[1]) if camera else -1
    )
    return split, sample, captions


def _layout(
    name: str,
    title: str,
    reader: Callable[..., Dataset],
    splits: Mapping[str, tuple[int, int, Number]],
) -> Layout:
    """With the published identities, images and captions of its splits."""
    return Layout(
        name,
        title,
        reader,
        partial(text_to_image, name=f"{name}/all"),
        headline=f"{name}/all/text_to_image",
        headline_words=f"{title}, every caption against all images",
        published={
            split: {
                Modality.VISIBLE: {"ids": ids, "images": images},
                Modality.TEXT: {"ids": ids, "captions": captions},
            }
            for split, (ids, images, captions) in splits.items()
        },
    )


LAYOUTS = (
    _layout(
        "cuhk",
        "CUHK-PEDES",
        read_cuhk,
        {
            "train": (11_003, 34_054, (68_108, 68_126)),  # sources differ
            "val": (1_000, 3_078, 6_158),
            "test": (1_000, 3_074, 6_156),
        },
    ),
    _layout(
        "icfg",
        "ICFG-PEDES",
        read_icfg,
        {"train": (3_102, 34_674, 34_674), "test": (1_000, 19_848, 19_848)},
    ),
    _layout(
        "rstp",
        "RSTPReid",
        read_rstp,
        {
            "train": (3_701, 18_505, 37_010),
            "val": (200, 1_000, 2_000),
            "test": (200, 1_000, 2_000),
        },
    ),
)
