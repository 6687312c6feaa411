"""The training rows that a run began with, which stay its rows whatever happens to the files.

Labels, plans and banks count rows. A run that goes on must therefore meet the same rows in the same
order. An image that was readable when the run began and is broken now stays a row, and another one
stands in for it as if the run had never stopped (`corrupt_images`). A row that is gone from
the data set has nothing to stand for: the run is refused.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.runs import checkpoint, runlog
from pipelines.storage.files import replace_file
from reid_core.datasets.cell_values import slashed
from reid_core.types import Split

log = logging.getLogger(__name__)
ROWS = "rows.json.gz"
_SHOWN = 10

Row = tuple[str, str]
"""Modality and image."""


def rows_of(split: Split) -> list[Row]:
    """The rows of a split, in order."""
    return [(str(sample.modality), sample.image) for sample in split.samples]


def remember(run_dir: Path, split: Split) -> None:
    """Remember what the run begins with."""
    replace_file(run_dir / ROWS, gzip.compress(json.dumps(rows_of(split)).encode(), mtime=0))


def recall(run_dir: Path) -> list[Row] | None:
    """What the run in this directory began with; None where it has no checkpoint to go on from.

    Raises:
        UserError: the file that says so is damaged.
    """
    path = run_dir / ROWS
    return _read(path) if path.exists() and runlog.has_checkpoint(run_dir) else None


def rows_of_checkpoint(path: Path) -> list[Row]:
    """What the run of a checkpoint was trained on; nothing where its run is not at hand.

    Args:
        path: checkpoint folder or run directory.

    Raises:
        UserError: no checkpoint, or the file that says so is damaged.
    """
    for run_dir in checkpoint.find(path).absolute().parents[:2]:  # a stage's has a folder of stages
        if (run_dir / ROWS).is_file():
            return _read(run_dir / ROWS)
    return []


def _read(path: Path) -> list[Row]:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        return [(modality, slashed(image)) for modality, image in content]
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}), and its checkpoints count those rows: restore it from a "
            "copy of the run, or choose another --out"
        ) from error


def restore(split: Split, begun: Sequence[Row]) -> Split:
    """The rows of `begun` out of what the data set holds now, see `find_rows`; says what is new."""
    remaining = find_rows(split, begun)
    if len(remaining) < len(split):
        log.warning(
            "left out: %d rows that the run did not begin with", len(split) - len(remaining)
        )
    return split.take(remaining)


def find_rows(split: Split, begun: Sequence[Row]) -> list[int]:
    """Where the rows of `begun` stand in what the data set holds now.

    Raises:
        UserError: some are gone, or they come in another order; names how many and which.
    """
    now = rows_of(split)
    known = set(begun)
    remaining = [i for i, row in enumerate(now) if row in known]
    if [now[i] for i in remaining] != list(begun):
        missing = sorted((Counter(begun) - Counter(now)).elements())
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        names = ", ".join(image for _, image in missing[:_SHOWN]) + more
        raise UserError(
            f"this run began with {len(begun)} training rows, which its checkpoint counts; "
            + (f"{len(missing)} are gone: {names}" if missing else "now they come in another order")
            + "; restore them, or choose another --out"
        )
    return remaining
