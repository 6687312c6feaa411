"""Trees that a program writes: their recipe comes first, what makes them a data set last.

So a tree is completed by the same command and touched by no other, whenever the first was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from reid_core.datasets.counts import EXPECTED

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]


def is_complete(
    root: Path,
    recipe: Mapping[str, object],
    file: str,
    *,
    called: str,
    before: Mapping[str, object] | None = None,
) -> bool:
    """Whether a root holds this very tree; if not, it may be written to.

    Args:
        root: of the tree.
        recipe: what decides its content.
        file: that keeps the recipe below the root.
        called: what such a tree is, for messages.
        before: entries that earlier recipes do not name, as they were then.

    Raises:
        ValueError: it holds another tree, or something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        result = json.loads((root / file).read_text())
    except (OSError, ValueError):
        result = None
    if isinstance(result, dict):
        result = {**(before or {}), **result}
    if result != recipe:
        held = "something else" if result is None else f"{called} of {result}"
        raise ValueError(
            f"{root} exists and holds {held}, not {dict(recipe)}; choose another root or remove it"
        )
    return (root / EXPECTED).exists()


def begin(root: Path, recipe: Mapping[str, object], file: str) -> None:
    """Make the root and say what it will hold."""
    root.mkdir(parents=True, exist_ok=True)
    _write(root / file, recipe)


def finish(root: Path, counts: Counts) -> None:
    """Write what the check of a data set shall count: it says that all the rest is there."""
    _write(root / EXPECTED, counts)


def _write(path: Path, content: object) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
