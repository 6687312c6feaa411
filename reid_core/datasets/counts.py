"""How many identities, cameras, images and captions a data set should have, and how many it has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reid_core.datasets import LAYOUTS
from reid_core.datasets.layouts import Expected, Number
from reid_core.types import Dataset, Modality, Split

SPLITS = ("train", "val", "test")
EXPECTED = "expected.json"


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
    expected: Mapping[str, Number]

    @property
    def wrong(self) -> dict[str, Number]:
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
    if published := LAYOUTS[dataset.kind].published:
        return "published numbers", published
    return "nothing to compare with", {}


def counts_of(datasets: Sequence[Dataset]) -> Expected:
    """What ``expected.json`` would say of a data set, or of all trials of one: a number, or the
    smallest and the largest where trials differ.
    """
    counts: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    for line in (line for dataset in datasets for line in count(dataset, {})):
        numbers = counts.setdefault(line.split, {}).setdefault(str(line.modality), {})
        for name, number in line.found.items():
            low, high = numbers.get(name, (number, number))
            numbers[name] = min(low, number), max(high, number)
    return {
        split: {
            modality: {name: low if low == high else (low, high) for name, (low, high) in n.items()}
            for modality, n in by_modality.items()
        }
        for split, by_modality in counts.items()
    }


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
    return Split(tuple(sample for part in parts for sample in part.samples))


def _found(split: Split, modality: Modality) -> dict[str, int]:
    rows = split.rows(modality)
    ids, cameras = (set(column[rows].tolist()) - {-1} for column in (split.pids, split.cameras))
    if modality == Modality.TEXT:
        return {"ids": len(ids), "captions": len(rows)}
    return {"ids": len(ids), "cameras": len(cameras), "images": len(rows)}


def _fits(number: int, expected: Number) -> bool:
    if isinstance(expected, (tuple, list)):
        low, high = expected
        return low <= number <= high
    return number == expected


def _is_number(value: object) -> bool:
    """A number, or the smallest and the largest."""
    if isinstance(value, list):
        return len(value) == 2 and all(map(_is_number, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _load(path: Path) -> Expected:
    try:
        expected: Expected = json.loads(path.read_text())
        for split, by_modality in expected.items():
            if not set(split.split("+")) <= set(SPLITS):
                raise ValueError(f"{split!r} is no split")
            for modality, numbers in by_modality.items():
                Modality(modality)
                if not isinstance(numbers, dict) or not all(map(_is_number, numbers.values())):
                    raise ValueError(f"{split} {modality} holds no numbers by name")
    except (AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must hold numbers per split and modality, e.g. "
            f'{{"train": {{"visible": {{"ids": 3, "images": 12}}}}}}: {error}'
        ) from error
    return expected
