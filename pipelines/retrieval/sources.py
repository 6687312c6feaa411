"""What can be embedded: a folder, a manifest or a data set, as one stream of samples, in parts.

Nothing here keeps more than one part, but that the names of one folder are sorted and the reader
of a data set lists it whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipelines.config.sections import DataConfig
from pipelines.data import roots
from pipelines.data.places import ROOT_ALONE, Trusted, without_detours
from pipelines.errors import UserError
from reid_core.datasets import LAYOUTS, folder, manifest, manifest_rows
from reid_core.datasets.files import ImageFiles, require_utf8
from reid_core.types import Modality, Sample, Split

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test", "all")
_PID_BYTES = 6  # of a hash: numbers that JSON's readers keep, and that do not meet
_PART_ROWS = 1024  # on average; a part is embedded again as a whole


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a source that share one file.

    Attributes:
        key: hash of the samples, the name of the file.
        samples: not empty.
    """

    key: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        path: a folder, a manifest (.csv, .jsonl or .parquet with the columns image and modality,
            perhaps pid, camera, tracklet, time and caption), or the root of a data set.
        kind: layout of the data set, None for a folder or manifest. Identities of the layout
            folder are numbered by the names of their folders, also in a set that was converted
            from it, so that sources agree.
        split: of the data set: train, val, test or all.
        modality: of every image of a folder; None where a folder named visible or infrared says it.
        trial: which of RegDB's divisions; None takes that of the run, see `embed`.
        trusted: where images may lie beside the root; that of the run where nothing is said.
        by_folder: whether the images of one folder are one tracklet, where the source is a folder
            of images; those directly in a folder of a modality have none.
        times: whether a manifest's times are needed, see `manifest_rows.rows`.

    Raises:
        UserError: nothing there, an unknown layout, split or file type.
    """

    path: Path
    kind: str | None = None
    split: str = "test"
    modality: Modality | None = None
    trial: int | None = None
    trusted: Trusted = ROOT_ALONE
    by_folder: bool = False
    times: bool = False

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist: give a folder of images or a manifest")
        if self.kind is not None and self.kind not in LAYOUTS:
            raise UserError(f"--kind {self.kind}: choose one of {', '.join(LAYOUTS)}")
        if self.trial is not None and not (self.kind and LAYOUTS[self.kind].has_trials):
            raise UserError(f"--trial {self.trial} is for --kind regdb: only RegDB has divisions")
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        if self.path.is_file() and self.path.suffix.lower() not in manifest_rows.SUFFIXES:
            raise UserError(
                f"{self.path} is no manifest: expected {', '.join(manifest_rows.SUFFIXES)}, or a "
                "folder"
            )
        if self.path.is_file() and self.kind not in (None, "manifest"):
            raise UserError(
                f"--kind {self.kind} is the layout of a folder, and {self.path} is none"
            )
        try:
            require_utf8(str(self.path.absolute()))
        except ValueError as error:
            raise UserError(str(error)) from error

    def as_trained(self, data: DataConfig) -> Source:
        """With what a run's data says of places and trials, where the source says none."""
        source = replace(self, path=self.path.resolve())
        if self.trusted == ROOT_ALONE:
            source = replace(source, trusted=Trusted(data.extra_roots, data.allow_http))
        if self.kind and LAYOUTS[self.kind].has_trials and self.trial is None:
            assert data.trial != "all"  # every trial is a run of its own
            source = replace(source, trial=data.trial)
        return source

    @property
    def root(self) -> Path:
        """Folder that the samples' images are relative to."""
        return (self.path.parent if self.path.is_file() else self.path).resolve()

    def samples(self) -> Iterator[Sample]:
        """All samples, always in the same order, and none whose image is named by a detour.

        Raises:
            UserError: names the line or folder that cannot be understood.
        """
        for sample in self._listed():
            image = without_detours(self.root, sample.image)
            yield sample if image == sample.image else replace(sample, image=image)

    def _listed(self) -> Iterator[Sample]:
        if self.kind is not None:
            return iter(self._data_set())
        if not self.path.is_file():
            return self._folder()
        was_folder = _layout_of(self.path) == folder.LAYOUT.name
        return self._named(self._manifest()) if was_folder else self._manifest()

    def _data_set(self) -> tuple[Sample, ...]:
        assert self.kind is not None
        result = roots.read(
            self.kind, self.path.resolve(), trial=self.trial or 1, trusted=self.trusted
        )
        for note in result.notes:
            log.warning("%s: %s", self.path, note)
        splits: dict[str, Split] = {name: getattr(result, name) for name in SPLITS[:3]}
        chosen = splits.values() if self.split == "all" else [splits[self.split]]
        samples = tuple(sample for split in chosen for sample in split.samples)
        return tuple(self._named(samples)) if result.kind == folder.LAYOUT.name else samples

    def _named(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Identities of folders, numbered by their names alone: other sources are to agree."""
        names: dict[int, str] = {}
        for sample in samples:
            if not (name := folder.identity_of(sample.image)):
                yield sample
                continue
            number = pid_of(name)
            if (other := names.setdefault(number, name)) != name:
                raise UserError(
                    f"{self.path}: the folders {other} and {name} would be one identity, "
                    f"{number}: rename one of them"
                )
            yield replace(sample, pid=number)

    def _folder(self) -> Iterator[Sample]:
        files = ImageFiles(self.root)
        try:
            for image in files.below():
                path = PurePosixPath(image)
                modality = self.modality or self._named_by_folder(path)
                yield Sample(image, modality, tracklet=self._folder_tracklet(path))
        except ValueError as error:
            raise UserError(str(error)) from error
        for note in files.notes():
            log.warning("%s: %s", self.path, note)

    def _folder_tracklet(self, image: PurePosixPath) -> int:
        names_track = self.by_folder and image.parent.name not in ("", *map(str, Modality))
        return _tracklet(f"{image.parent}/") if names_track else -1

    def _named_by_folder(self, image: PurePosixPath) -> Modality:
        names = [str(m) for m in Modality if m != Modality.TEXT]
        for part in image.parts[:-1]:
            if part in names:
                return Modality(part)
        raise UserError(
            f"{self.path / image}: its modality is not known. Put images into folders named "
            f"{' and '.join(names)}, or say --modality {' (or '.join(names)}) for all of them"
        )

    def _manifest(self) -> Iterator[Sample]:
        """A sentence about an image is a sample where its row is one of text."""
        try:
            listed = manifest_rows.rows(self.path, modality=self.modality, times=self.times)
            for row in listed:
                if row.again:  # another sentence about an image that is listed
                    continue
                if row.image:
                    self.trusted.require(self.root, [row.image], follow_links=False)
                yield next(row.samples(_tracklet(row.tracklet)))
        except ValueError as error:
            raise UserError(str(error)) from error


def record_id(sample: Sample) -> str:
    """What a vector is called: the image; of a sentence the image and a hash of the words."""
    if not sample.caption:
        return sample.image
    return f"{sample.image}#{hashlib.blake2b(sample.caption.encode(), digest_size=5).hexdigest()}"


def image_of(name: str, modality: str) -> str:
    """The image that a `record_id` names, in which "#" may stand too."""
    return name.rpartition("#")[0] if modality == Modality.TEXT else name


def parts(samples: Iterable[Sample], *, mean_rows: int = _PART_ROWS) -> Iterator[Part]:
    """Cut a stream where the hash of a sample says so.

    Args:
        samples: in a fixed order.
        mean_rows: of a part, roughly; none has more than four times as many.

    Yields:
        Parts in order. A sample that is added or taken away changes the parts next to it alone.
    """
    rows: list[Sample] = []
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        own = hashlib.blake2b(
            f"{record_id(sample)}\0{sample.modality}\0{sample.pid}\0{sample.camera}"
            f"\0{sample.tracklet}{sample.time or ''}".encode(),
            digest_size=8,
        ).digest()
        rows.append(sample)
        digest.update(own)
        if int.from_bytes(own) % mean_rows == 0 or len(rows) == 4 * mean_rows:
            yield Part(digest.hexdigest(), tuple(rows))
            rows, digest = [], hashlib.blake2b(digest_size=8)
    if rows:
        yield Part(digest.hexdigest(), tuple(rows))


def pid_of(name: str) -> int:
    """The number of the identity that a folder names."""
    return _number(name, num_bytes=_PID_BYTES)


def _layout_of(path: Path) -> str:
    """The layout that a manifest was converted from, "" where it was written otherwise."""
    try:
        return manifest.notes_of(path).get(manifest.KIND_KEY, "")
    except ValueError as error:
        raise UserError(str(error)) from error


def _tracklet(name: str) -> int:
    """A track's number: its name where that is one, else a hash: a stream keeps no table."""
    return _number(name, num_bytes=7) if name else -1


def _number(name: str, *, num_bytes: int) -> int:
    """A name that is a number is that one; of another one a hash."""
    if name.isascii() and name.isdecimal() and int(name) < 2**63:
        return int(name)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=num_bytes).digest())


def modality_named(name: str | None, option: str) -> Modality | None:
    """The modality that an option of the command line names, None where it is not given.

    Raises:
        UserError: no modality is called so.
    """
    if name is not None and name not in list(Modality):
        raise UserError(f"{option} {name}: choose {', '.join(Modality)}")
    return None if name is None else Modality(name)
