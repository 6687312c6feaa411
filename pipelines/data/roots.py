"""Where a data set lies: a folder, or the URI of one that was converted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipelines.data.places import ROOT_ALONE, Trusted
from pipelines.errors import UserError
from pipelines.storage.http import is_http
from pipelines.storage.shards import has_file, location, read_file
from reid_core.datasets import LAYOUTS
from reid_core.datasets.counts import EXPECTED, SPLITS, expected_counts
from reid_core.datasets.layouts import Expected
from reid_core.datasets.manifest import NAMES
from reid_core.types import Dataset


def require_folder(root: Path) -> None:
    """Nothing, where a data set can lie; known without loading what trains.

    Raises:
        UserError: no such folder.
    """
    if "://" not in location(root) and not root.is_dir():
        if root.is_file():
            raise UserError(f"data.root={root} is a file: give the folder that holds it")
        raise UserError(
            f"data.root={root} is not a folder: see that it is mounted here, or give another one "
            "(data.root=PATH, of `crossreid eval` --root PATH)"
        )


def read(kind: str, root: Path, *, trial: int = 1, trusted: Trusted = ROOT_ALONE) -> Dataset:
    """The data set of a layout below a root.

    Args:
        kind: a key of `reid_core.datasets.LAYOUTS`.
        root: folder that its reader wants, or, of a manifest, a URI.
        trial: which of RegDB's divisions.
        trusted: where images may lie beside the root.

    Raises:
        UserError: no such layout or root, or another layout in it; says what was expected.
    """
    if kind not in LAYOUTS:
        raise UserError(f"{kind}: unknown layout; choose one of {', '.join(LAYOUTS)}")
    where = location(root)
    if is_http(where):
        raise UserError(
            f"{where}: a data set is not read by http, only images that a manifest names: download "
            "it, or give its folder or bucket (s3://..., gs://...)"
        )
    if "://" in where and not LAYOUTS[kind].has_paths:
        raise UserError(
            f"{where}: a {kind} tree is read from a folder. `crossreid data convert {kind} FOLDER "
            f"{where}` packs it; after that its layout is manifest (data.kind=manifest)"
        )
    with _lists(where) as folder:
        try:
            result = LAYOUTS[kind].read(folder, trial=trial)
        except ValueError as error:
            said = str(error).replace(str(folder), where)
            raise UserError(f"{where} is no readable {kind} data set: {said}") from error
    dataset = replace(result, root=root) if "://" in where else result
    if dataset.kind not in LAYOUTS:
        raise UserError(f"{where} says that its layout was {dataset.kind[:60]}, which is unknown")
    images = (s.image for split in SPLITS for s in getattr(dataset, split).samples)
    trusted.require(dataset.root, dict.fromkeys(images), follow_links=not LAYOUTS[kind].has_paths)
    return dataset


def expected(dataset: Dataset) -> tuple[str, Expected]:
    """Like `reid_core.datasets.counts.expected_counts`, wherever the data set lies.

    Raises:
        UserError: a list of counts that is none.
    """
    where = location(dataset.root)
    with _lists(where) as folder:
        try:
            source, numbers = expected_counts(replace(dataset, root=folder))
        except ValueError as error:
            raise UserError(str(error).replace(str(folder), where)) from error
    return source.replace(str(folder), where), numbers


@contextmanager
def _lists(where: str) -> Iterator[Path]:
    """A folder with what says which images there are: the root itself, or copies out of a URI."""
    if "://" not in where:
        yield Path(where)
        return
    with tempfile.TemporaryDirectory() as copies:
        folder = Path(copies)
        try:
            for name in (*NAMES, EXPECTED):
                if has_file(f"{where}/{name}"):
                    (folder / name).write_bytes(read_file(f"{where}/{name}"))
        except (OSError, ValueError) as error:
            scheme, _, path = where.partition("://")
            raise UserError(
                f"cannot read {path} by {scheme}://: {str(error)[:200]}\ncheck the address and "
                "every node's credentials; what pyarrow does not open itself needs the fsspec "
                "package of its scheme (gcsfs, adlfs, ...)"
            ) from error
        if not any((folder / name).is_file() for name in NAMES):
            raise UserError(
                f"{where} holds none of {', '.join(NAMES)}: check the path; `crossreid data "
                "convert` writes the first one last, so run it again if it was interrupted"
            )
        yield folder
