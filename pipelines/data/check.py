"""Is this data set the one that was published? Counts, unreadable files, duplicates, shared
identities.

Data that is prepared slightly wrong still trains; it only costs points that nobody finds again.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from pipelines.cluster.machine import cores
from pipelines.data import roots
from pipelines.data.places import ROOT_ALONE, Trusted
from pipelines.errors import UserError
from pipelines.runs.console import console
from pipelines.storage.files import Json, reason, replace_file
from pipelines.storage.shards import location, read_bytes
from reid_core.datasets import LAYOUTS
from reid_core.datasets.counts import EXPECTED, SPLITS, Count, count, counts_of
from reid_core.datasets.layouts import Number
from reid_core.images import decode, size_of
from reid_core.tracklets import lengths
from reid_core.types import Dataset, Modality

_SHOWN = 10  # examples of one problem on the terminal; JSON holds all
_WORDS = {"ids": "identities"}


@dataclass(frozen=True)
class Problem:
    """One thing that is off.

    Attributes:
        what: a sentence.
        examples: images or ids that it is about.
    """

    what: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        kind, root: what was checked.
        expected_from: where the expected numbers come from.
        counts: per split and modality.
        sizes: per modality, smallest and largest [height, width] of an image.
        notes: what was passed over; no fault.
        problems: empty if all is well.
        near_duplicates: sets of images that are nearly the same, where they were looked for.
    """

    kind: str
    root: str
    expected_from: str = ""
    counts: list[Count] = field(default_factory=list)
    sizes: dict[str, list[list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    near_duplicates: list[list[str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is off."""
        return not self.problems

    def to_json(self) -> Json:
        """The same as plain lists and dicts."""
        return {"ok": self.ok, **asdict(self)}


def check(kind: str, root: Path, *, trusted: Trusted = ROOT_ALONE) -> Check:
    """Look at every sample and every image of a data set.

    Args:
        kind: a key of `reid_core.datasets.LAYOUTS`.
        root: as its reader wants it.
        trusted: where images may lie beside the root.

    Returns:
        A check whose only problem is the layout, where the reader finds it wrong.

    Raises:
        UserError: unknown layout.
    """
    if kind not in LAYOUTS:
        raise UserError(f"{kind}: unknown layout; choose one of {', '.join(LAYOUTS)}")
    root = root if "://" in location(root) else root.resolve()
    try:
        trials = _read(kind, root, trusted)
        first = next(iter(trials.values()))
        expected_from, expected = roots.expected(first)
    except (UserError, ValueError) as error:
        return Check(kind, location(root), problems=[Problem(str(error))])
    problems: list[Problem] = []
    for trial, dataset in trials.items():
        problems += _wrong_counts(trial, count(dataset, expected))
        problems += _shared_identities(trial, dataset)
    problems += _listed_twice(first)
    images = _images(trials.values())
    sizes, result = _look_at(first.root, images)
    return Check(
        kind=first.kind,
        root=location(root),
        expected_from=expected_from,
        counts=count(first, expected),
        sizes=sizes,
        notes=[*first.notes, *_tracklets(first)],
        problems=problems + result,
    )


def write_expected(kind: str, root: Path, *, trusted: Trusted = ROOT_ALONE) -> Path:
    """Write what a data set counts now to its expected.json, for later checks to compare with.

    Args:
        kind, root, trusted: as in `check`.

    Returns:
        The file.

    Raises:
        UserError: the data set cannot be read, the root is no folder, or holds the file already.
    """
    where = location(root)
    path = Path(where) / EXPECTED
    if "://" in where:
        raise UserError(f"{where}: --write-expected wants a folder; write it before `data convert`")
    if path.exists():
        raise UserError(f"{path} is there already: delete it to write what is there now")
    trials = _read(kind, root.resolve(), trusted)
    text = json.dumps(counts_of(list(trials.values())), indent=1) + "\n"
    try:
        replace_file(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; see whose folder it is") from error
    return path


def counts_differ(dataset: Dataset) -> list[str]:
    """Sentences about numbers that are not as expected; images are not opened."""
    _, expected = roots.expected(dataset)
    return [problem.what for problem in _wrong_counts("", count(dataset, expected))]


def render(check: Check) -> Group:
    """A check for the terminal."""
    table = Table(
        title=f"{escape(check.kind)} in {escape(check.root)}",
        caption=f"in brackets: expected ({escape(check.expected_from)})",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("split", "modality", "identities", "cameras", "images", "captions", "image size"):
        table.add_column(name, justify="left" if name in ("split", "modality") else "right")
    for line in check.counts:
        cells = [_cell(line, name) for name in ("ids", "cameras", "images", "captions")]
        size = _size(check.sizes.get(line.modality))
        style = "red" if line.wrong else None
        table.add_row(line.split, str(line.modality), *cells, size, style=style)
    lines: list[RenderableType] = [table] if check.counts else []
    lines += [escape(note) for note in check.notes]
    for one in check.near_duplicates[:_SHOWN]:
        shown = " = ".join(one[:_SHOWN]) + (" ..." if len(one) > _SHOWN else "")
        lines.append(f"  {escape(shown)}")
    for problem in check.problems:
        lines.append(f"[bold red]wrong:[/] {escape(problem.what)}")
        lines += [f"  {escape(example)}" for example in problem.examples[:_SHOWN]]
        if len(problem.examples) > _SHOWN:
            lines.append(f"  and {len(problem.examples) - _SHOWN} more (--json FILE lists all)")
    if check.ok:
        lines.append("[green]nothing is off[/]")
    return Group(*lines)


def _read(kind: str, root: Path, trusted: Trusted) -> dict[str, Dataset]:
    """The data set, or all trials of one that has some, by what messages begin with."""
    if not LAYOUTS[kind].has_trials:
        return {"": roots.read(kind, root, trusted=trusted)}
    return {
        f"trial {n}, ": roots.read(kind, root, trial=n, trusted=trusted)
        for n in LAYOUTS[kind].trials
    }


def _wrong_counts(trial: str, counts: Iterable[Count]) -> list[Problem]:
    return [
        Problem(
            f"{trial}{line.split} {line.modality}: {line.found.get(name, 0):,} "
            f"{_WORDS.get(name, name)} instead of {_range(number)}"
        )
        for line in counts
        for name, number in line.wrong.items()
    ]


def _shared_identities(trial: str, dataset: Dataset) -> list[Problem]:
    identities = {name: set(getattr(dataset, name).pids.tolist()) - {-1} for name in SPLITS}
    return [
        Problem(
            f"{trial}both in {first} and in {second}: {len(shared):,} identities",
            tuple(f"id {pid}" for pid in shared),
        )
        for first, second in (("train", "val"), ("train", "test"), ("val", "test"))
        if (shared := sorted(identities[first] & identities[second]))
    ]


def _listed_twice(dataset: Dataset) -> list[Problem]:
    times: dict[str, int] = defaultdict(int)
    for name in SPLITS:
        for sample in getattr(dataset, name).samples:
            times[sample.image] += sample.modality != Modality.TEXT
    twice = tuple(image for image, number in times.items() if number > 1)
    return (
        [Problem(f"listed more than once: {_images_in_words(len(twice))}", twice)] if twice else []
    )


def _tracklets(dataset: Dataset) -> Iterator[str]:
    """A sentence per split and modality that has tracklets: how many, and how long."""
    for name in SPLITS:
        split = getattr(dataset, name)
        for modality in Modality:
            own = split.take(split.rows(modality))
            counts = np.sort(lengths(own))
            if len(counts):
                loose = len(own) - int(counts.sum())
                yield (
                    f"{name} {modality}: {len(counts):,} tracklets of {counts[0]} to {counts[-1]} "
                    f"images, half of them of {counts[len(counts) // 2]} or more"
                    + (f"; {_images_in_words(loose)} without one" if loose else "")
                )


def _images(datasets: Iterable[Dataset]) -> dict[str, Modality]:
    """Every image once; sentences are about images that are listed themselves."""
    return {
        sample.image: sample.modality
        for dataset in datasets
        for name in SPLITS
        for sample in getattr(dataset, name).samples
        if sample.modality != Modality.TEXT
    }


@dataclass(frozen=True)
class _Seen:
    """One image: its content's hash and [height, width], or why it cannot be read."""

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    error: str = ""


def _look_at(
    root: Path, images: dict[str, Modality]
) -> tuple[dict[str, list[list[int]]], list[Problem]]:
    """Sizes of the images per modality, and what is wrong with them."""
    by_digest: dict[bytes, list[str]] = defaultdict(list)
    sizes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    unreadable = []
    seen = track(
        _in_threads(root, images),
        total=len(images),
        description="reading images",
        console=console,
        transient=True,
    )
    for image, result in seen:
        if result.error:
            unreadable.append(f"{image}: {result.error}")
            continue
        by_digest[result.digest].append(image)
        sizes[images[image]].append(result.size)
    problems = []
    if unreadable:
        problems.append(
            Problem(f"unreadable: {_images_in_words(len(unreadable))}", tuple(sorted(unreadable)))
        )
    same = sorted(" = ".join(group) for group in by_digest.values() if len(group) > 1)
    if same:
        what = f"under several names: {_images_in_words(len(same))} with the very same content"
        problems.append(Problem(what, tuple(same)))
    extremes = {
        str(modality): [list(map(extreme, zip(*result, strict=True))) for extreme in (min, max)]
        for modality, result in sizes.items()
    }
    return extremes, problems


def _in_threads(root: Path, images: Iterable[str]) -> Iterator[tuple[str, _Seen]]:
    """What is seen of each image, in order; decoders let other threads run."""
    workers = cores()
    waiting = iter(images)
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(waiting, 64 * workers)):
            yield from zip(chunk, pool.map(lambda image: _look(root / image), chunk), strict=True)


def _look(path: Path) -> _Seen:
    try:
        data = read_bytes(path)
    except OSError as error:
        return _Seen(error="missing" if isinstance(error, FileNotFoundError) else reason(error))
    try:
        height, width = size_of(data)
        decode(data, height=height, width=width)
    except ValueError as error:
        return _Seen(error=str(error))
    return _Seen(hashlib.blake2b(data, digest_size=16).digest(), (height, width))


def _images_in_words(number: int) -> str:
    return f"{number:,} image{'s' * (number != 1)}"


def _cell(line: Count, name: str) -> str:
    if name not in line.found:
        return ""
    text = f"{line.found[name]:,}"
    return f"{text} ({_range(line.expected[name])})" if name in line.expected else text


def _range(number: Number) -> str:
    if isinstance(number, (tuple, list)):
        return " to ".join(f"{end:,}" for end in number)
    return f"{number:,}"


def _size(extremes: list[list[int]] | None) -> str:
    if not extremes:
        return ""
    small, large = ("x".join(map(str, size)) for size in extremes)
    return small if small == large else f"{small} to {large}"
