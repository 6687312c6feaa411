"""What can be embedded: a folder, a manifest or a data set, as one stream of records, in parts.

Nothing here keeps more than one part, but that the names of one folder are sorted and the reader
of a data set lists it whole.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from pipelines.data import roots
from pipelines.errors import UserError
from reid_core.datasets import LAYOUTS
from reid_core.datasets.lists import IMAGE_SUFFIXES
from reid_core.types import Modality, Sample, Split

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
SPLITS = ("train", "val", "test", "all")
_PART_ROWS = 1024  # on average; a part is embedded again as a whole


@dataclass(frozen=True)
class Part:
    """Consecutive records of a source that share one file.

    Attributes:
        key: hash of the records, the name of the file.
        records: not empty.
    """

    key: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Source:
    """Where records come from.

    Attributes:
        path: a folder, a manifest (.csv, .jsonl or .parquet with the columns image and modality,
            perhaps pid, camera and caption), or the root of a data set.
        kind: layout of the data set, None for a folder or manifest.
        split: of the data set: train, val, test or all.
        modality: of every image of a folder; None where a folder named visible or infrared says it.
        trial: which of RegDB's divisions; None takes that of the run, see `embed`.

    Raises:
        UserError: nothing there, an unknown kind, split or file type.
    """

    path: Path
    kind: str | None = None
    split: str = "test"
    modality: Modality | None = None
    trial: int | None = None

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist: give a folder of images or a manifest")
        if self.kind is not None and self.kind not in LAYOUTS:
            raise UserError(f"--kind {self.kind}: choose one of {', '.join(LAYOUTS)}")
        if self.trial is not None and not (self.kind and LAYOUTS[self.kind].has_trials):
            raise UserError(f"--trial {self.trial} is for --kind regdb: only RegDB has divisions")
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        if self.path.is_file() and self.path.suffix not in MANIFEST_SUFFIXES:
            raise UserError(
                f"{self.path} is no manifest: expected {', '.join(MANIFEST_SUFFIXES)}, or a folder"
            )

    @property
    def root(self) -> Path:
        """Folder that the records' images are relative to."""
        return (self.path.parent if self.path.is_file() else self.path).resolve()

    def samples(self) -> Iterator[Sample]:
        """All records, always in the same order.

        Raises:
            UserError: names the line or folder that cannot be understood.
        """
        if self.kind is not None:
            return iter(self._data_set())
        return self._manifest() if self.path.is_file() else self._folder()

    def _data_set(self) -> tuple[Sample, ...]:
        assert self.kind is not None
        found = roots.read(self.kind, self.root, trial=self.trial or 1)
        splits: dict[str, Split] = {name: getattr(found, name) for name in SPLITS[:3]}
        chosen = splits.values() if self.split == "all" else [splits[self.split]]
        return tuple(sample for split in chosen for sample in split.samples)

    def _folder(self) -> Iterator[Sample]:
        for image in _walk(self.root, PurePosixPath()):
            yield Sample(str(image), self.modality or self._named_by_folder(image))

    def _named_by_folder(self, image: PurePosixPath) -> Modality:
        names = [str(m) for m in Modality if m != Modality.TEXT]
        for folder in image.parts[:-1]:
            if folder in names:
                return Modality(folder)
        raise UserError(
            f"{self.path / image}: its modality is not known. Put images into folders named "
            f"{' and '.join(names)}, or say --modality {' (or '.join(names)}) for all of them"
        )

    def _manifest(self) -> Iterator[Sample]:
        for number, row in enumerate(_rows(self.path), start=1):
            yield _record(row, self.modality, where=f"{self.path}, row {number}")


def record_id(sample: Sample) -> str:
    """What a vector is called: the image; of a sentence the image and a hash of the words."""
    if not sample.caption:
        return sample.image
    return f"{sample.image}#{hashlib.blake2b(sample.caption.encode(), digest_size=5).hexdigest()}"


def parts(records: Iterable[Sample], *, mean_rows: int = _PART_ROWS) -> Iterator[Part]:
    """Cut a stream where the hash of a record says so.

    Args:
        records: in a fixed order.
        mean_rows: of a part, roughly; none has more than four times as many.

    Yields:
        Parts in order. A record that is added or taken away changes the parts next to it alone.
    """
    rows: list[Sample] = []
    digest = hashlib.blake2b(digest_size=8)
    for sample in records:
        own = hashlib.blake2b(
            f"{record_id(sample)}\0{sample.modality}\0{sample.pid}\0{sample.camera}".encode(),
            digest_size=8,
        ).digest()
        rows.append(sample)
        digest.update(own)
        if int.from_bytes(own) % mean_rows == 0 or len(rows) == 4 * mean_rows:
            yield Part(digest.hexdigest(), tuple(rows))
            rows, digest = [], hashlib.blake2b(digest_size=8)
    if rows:
        yield Part(digest.hexdigest(), tuple(rows))


def _walk(root: Path, below: PurePosixPath) -> Iterator[PurePosixPath]:
    """Image files of a tree, folder by folder in the order of names."""
    with os.scandir(root / below) as found:
        entries = sorted((entry.name, entry.is_dir()) for entry in found)
    for name, is_folder in entries:
        if is_folder:
            yield from _walk(root, below / name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            yield below / name


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
                yield from batch.to_pylist()
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
        else:
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a readable {path.suffix[1:]} file: {error}") from error


def _record(row: Mapping[str, Any], default: Modality | None, *, where: str) -> Sample:
    if not row.get("image"):
        known = ", ".join(map(str, row)) or "none"
        raise UserError(f"{where}: no image; columns found: {known}, needed: image, modality")
    named = row.get("modality") or default
    try:
        modality = Modality(str(named))
    except ValueError:
        raise UserError(
            f"{where}: modality is {named!r}; it must be one of {', '.join(Modality)} (or say "
            "--modality for all rows)"
        ) from None
    numbers = {}
    for name in ("pid", "camera"):
        given = row.get(name)
        try:
            numbers[name] = -1 if given in (None, "") else int(given)
        except ValueError:
            raise UserError(f"{where}: {name} is {given!r}, expected a whole number") from None
    caption = str(row.get("caption") or "") if modality == Modality.TEXT else ""
    if modality == Modality.TEXT and not caption:
        raise UserError(f"{where}: a text row needs a caption")
    return Sample(str(row["image"]), modality, caption=caption, **numbers)


def modality_named(name: str | None, option: str) -> Modality | None:
    """The modality that an option of the command line names, None where it is not given.

    Raises:
        UserError: no modality is called so.
    """
    if name is not None and name not in list(Modality):
        raise UserError(f"{option} {name}: choose {', '.join(Modality)}")
    return None if name is None else Modality(name)
