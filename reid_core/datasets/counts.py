"""How many identities, cameras, images and captions a data set should have, and how many it has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_core.types import Dataset, Modality, Split

SPLITS = ("train", "val", "test")
EXPECTED = "expected.json"
Expected = dict[str, dict[str, dict[str, Any]]]
"""Per split ("train+val" for both together) and modality: "ids", "cameras", "images", "captions";
a pair of numbers is a range."""

PUBLISHED: dict[str, Expected] = {
    "sysu": {
        "train+val": {
            "visible": {"ids": 395, "cameras": 4, "images": 22_258},
            "infrared": {"ids": 395, "cameras": 2, "images": 11_909},
        },
        "test": {
            "visible": {"ids": 96, "cameras": 4},
            "infrared": {"ids": 96, "cameras": 2, "images": 3_803},
        },
    },
    "regdb": {
        split: {modality: {"ids": 206, "images": 2_060} for modality in ("visible", "infrared")}
        for split in ("train", "test")
    },
    "llcm": {
        "train": {
            "visible": {"ids": 713, "images": 16_946},
            "infrared": {"ids": 713, "images": 13_975},
        },
        "test": {
            "visible": {"ids": 351, "cameras": 9},
            "infrared": {"ids": 351, "cameras": 8},
        },
    },
    "cuhk": {
        "train": {
            "visible": {"ids": 11_003, "images": 34_054},
            "text": {"ids": 11_003, "captions": (68_108, 68_126)},  # sources differ
        },
        "val": {
            "visible": {"ids": 1_000, "images": 3_078},
            "text": {"ids": 1_000, "captions": 6_158},
        },
        "test": {
            "visible": {"ids": 1_000, "images": 3_074},
            "text": {"ids": 1_000, "captions": 6_156},
        },
    },
    "icfg": {
        "train": {
            "visible": {"ids": 3_102, "images": 34_674},
            "text": {"ids": 3_102, "captions": 34_674},
        },
        "test": {
            "visible": {"ids": 1_000, "images": 19_848},
            "text": {"ids": 1_000, "captions": 19_848},
        },
    },
    "rstp": {
        "train": {
            "visible": {"ids": 3_701, "images": 18_505},
            "text": {"ids": 3_701, "captions": 37_010},
        },
        "val": {
            "visible": {"ids": 200, "images": 1_000},
            "text": {"ids": 200, "captions": 2_000},
        },
        "test": {
            "visible": {"ids": 200, "images": 1_000},
            "text": {"ids": 200, "captions": 2_000},
        },
    },
}
"""Numbers of the papers and of the data sets' own pages; what no source states is left out."""


@dataclass(frozen=True)
class Count:
    """What one modality of a split has beside what it should have.

    Attributes:
        split: "train", "val", "test" or "train+val".
        modality: of the rows.
        found: numbers by name.
        expected: the numbers that are known, by the same names.
    """

    split: str
    modality: Modality
    found: dict[str, int]
    expected: dict[str, Any]

    @property
    def wrong(self) -> dict[str, Any]:
        """Expected numbers that were not found."""
        return {
            name: number
            for name, number in self.expected.items()
            if not _fits(self.found.get(name, 0), number)
        }


def expected_counts(dataset: Dataset) -> tuple[str, Expected]:
    """Where the expected numbers come from, in words, and the numbers.

    They are those of ``expected.json`` below the root where there is one, else the published ones;
    empty for data that nobody has published numbers for.

    Raises:
        ValueError: ``expected.json`` is not readable as such numbers.
    """
    path = dataset.root / EXPECTED
    if path.is_file():
        return str(path), _load(path)
    if dataset.kind in PUBLISHED:
        return "published numbers", PUBLISHED[dataset.kind]
    return "nothing to compare with", {}


def count(dataset: Dataset, expected: Expected) -> list[Count]:
    """Numbers of every split and modality that the data set has or should have."""
    names = [split for split in SPLITS if len(getattr(dataset, split)) or split in expected]
    names += [name for name in expected if name not in names]
    counts = []
    for name in names:
        split = _split(dataset, name)
        for modality in Modality:
            numbers = expected.get(name, {}).get(modality, {})
            if numbers or len(split.rows(modality)):
                counts.append(Count(name, modality, _found(split, modality), numbers))
    return counts


def _split(dataset: Dataset, name: str) -> Split:
    parts = [getattr(dataset, part) for part in name.split("+")]
    return Split(tuple(record for part in parts for record in part.samples))


def _found(split: Split, modality: Modality) -> dict[str, int]:
    rows = split.rows(modality)
    ids, cameras = (set(column[rows].tolist()) - {-1} for column in (split.pids, split.cameras))
    if modality == Modality.TEXT:
        return {"ids": len(ids), "captions": len(rows)}
    return {"ids": len(ids), "cameras": len(cameras), "images": len(rows)}


def _fits(number: int, expected: Any) -> bool:
    if isinstance(expected, (tuple, list)):
        low, high = expected
        return low <= number <= high
    return number == expected


def _load(path: Path) -> Expected:
    try:
        expected = json.loads(path.read_text())
        for split, by_modality in expected.items():
            if not set(split.split("+")) <= set(SPLITS):
                raise ValueError(f"{split!r} is no split")
            for modality, numbers in by_modality.items():
                Modality(modality)
                if not isinstance(numbers, dict):
                    raise ValueError(f"{split} {modality} holds no numbers by name")
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold numbers per split and modality, e.g. "
            f'{{"train": {{"visible": {{"ids": 3, "images": 12}}}}}}: {error}'
        ) from error
    return expected
