"""Reads what a run left behind. Only metrics.jsonl is required; the rest may be missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np
import yaml

from pipelines.runs import runlog
from pipelines.runs.records import EpochLine, Summary
from pipelines.storage.files import Json

_KINDS, _NUMBERS = get_type_hints(EpochLine), (int, float)


@dataclass(frozen=True)
class Run:
    """One run directory in memory.

    Attributes:
        directory: where it was read.
        config: resolved configuration, {} where missing.
        environment: versions, machine, command and start time, {} where missing.
        epochs: one mapping per finished epoch, in training order, each with "stage" and "epoch".
        summary: rows, protocol, seconds and seed, {} where missing (a run that has not finished).
        rankings: row name -> arrays of evaluation/<row>.npz, in the order of the rows: the start,
            stages but for the last one, which is the final state, "final".
        notes: sentences about files that could not be read in full.
    """

    directory: Path
    config: Mapping[str, Json]
    environment: Mapping[str, Json]
    epochs: tuple[EpochLine, ...]
    summary: Summary
    rankings: Mapping[str, Mapping[str, np.ndarray]]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """Name of the method in lower case, "" where unknown."""
        return str(self.config.get("method", "")).lower()

    @property
    def data(self) -> Mapping[str, Json]:
        """The configuration's data section, {} where missing."""
        section = self.config.get("data")
        return section if isinstance(section, Mapping) else {}

    @property
    def root(self) -> str:
        """Folder or URI of the data, "" where unknown."""
        return str(self.data.get("root") or "")

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in the order in which they ran."""
        return tuple(dict.fromkeys(epoch["stage"] for epoch in self.epochs))

    @property
    def generated(self) -> bool:
        """Whether the identities were drawn by the product's own generator."""
        seconds = self.summary.get("seconds") or {}
        return "generate" in seconds or bool(
            self.root and (Path(self.root) / "synthetic.json").is_file()
        )


def read(directory: Path) -> Run:
    """Read a run directory.

    Args:
        directory: folder that `crossreid train` or `crossreid demo` wrote.

    Returns:
        What was found. A file that cannot be read becomes a note.

    Raises:
        ValueError: there is no metrics.jsonl.
    """
    metrics = directory / runlog.METRICS
    if not metrics.is_file():
        raise ValueError(
            f"{metrics} does not exist, so there is no run to report on; give the directory that "
            "was passed to `crossreid train ... --out DIR` or `crossreid demo --out DIR`"
        )
    notes: list[str] = []
    epochs = _epochs(directory, notes)
    return Run(
        directory=directory,
        config=_mapping(directory / "config.yaml", notes),
        environment=_mapping(directory / "environment.json", notes),
        epochs=epochs,
        summary=_summary(directory / "summary.json", notes),
        rankings=_rankings(directory / "evaluation", epochs, notes),
        notes=tuple(notes),
    )


def _mapping(path: Path, notes: list[str]) -> dict[str, Json]:
    """A JSON or YAML mapping; {} and perhaps a note where there is none."""
    if not path.is_file():
        return {}
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if isinstance(content, dict):
        return content
    notes.append(f"{path.name} is damaged and was left out.")
    return {}


def _summary(path: Path, notes: list[str]) -> Summary:
    """summary.json, or {} where its parts are not what they are called."""
    content = _mapping(path, notes)
    parts = [content.get(name) or {} for name in ("rows", "chance", "seconds", "evaluation")]
    tables = [part for part in parts if isinstance(part, dict)]
    rows = [*tables[0].values()] if len(tables) == len(parts) else [None]
    if all(isinstance(row, dict) for row in rows):
        return cast(Summary, content)
    notes.append(f"{path.name} is damaged and was left out.")
    return {}


def _epochs(directory: Path, notes: list[str]) -> tuple[EpochLine, ...]:
    """Finished epochs. A killed run leaves half a line, a resumed run writes an epoch again."""
    result: dict[tuple[str, int], EpochLine] = {}
    lines = list(runlog.numbered_metrics(directory))
    for number, epoch in lines:
        if epoch is None:
            where = "The last line" if number == lines[-1][0] else f"Line {number}"
            notes.append(
                f"{where} of {runlog.METRICS} is damaged and was skipped, as happens when a run is "
                "stopped while it writes."
            )
            continue
        if wrong := [name for name in epoch if not _is_sound(name, epoch)]:
            notes.append(
                f"Line {number} of {runlog.METRICS}: {', '.join(wrong)[:200]} left out: damaged."
            )
        sound = {name: value for name, value in epoch.items() if name not in wrong}
        result[epoch["stage"], epoch["epoch"]] = cast(EpochLine, sound)
    return tuple(result.values())


def _is_sound(name: str, epoch: EpochLine) -> bool:
    """Whether a part of a line is of its kind, so that figures can be drawn of it."""
    value, kind = cast(dict[str, object], epoch)[name], _KINDS.get(name)
    if kind in _NUMBERS:
        return not isinstance(value, dict) and _holds_numbers(value)
    of_numbers = get_origin(kind) is dict and get_args(kind)[1] in _NUMBERS
    if of_numbers or name in ("speed", "truth"):
        return isinstance(value, dict) and _holds_numbers(value)
    return True


def _holds_numbers(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_holds_numbers, value.values()))
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _rankings(
    folder: Path, epochs: Sequence[EpochLine], notes: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    rankings = {}
    stages = list(dict.fromkeys(epoch["stage"] for epoch in epochs))
    for row in ("start", *stages[:-1], "final"):
        path = folder / f"{row}.npz"
        if not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rankings[row] = dict(arrays)
        except (OSError, ValueError, EOFError, BadZipFile):
            notes.append(f"{folder.name}/{path.name} is damaged and was left out.")
    return rankings
