"""A small search file and a trial that ended, for the tests of sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipelines.sweep.ledger import SweepTrial

WEIGHT, KEEP = "cclnet.image_to_text", "cclnet.swap.keep"


def search_writer(folder: Path) -> Callable[..., Path]:
    """Writes a recipe into the folder and a search over it; keywords replace keys of the search."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "model: {name: crossreid-small, pretrained: bundled, height: 96, width: 48}\n"
        "data: {root: /nowhere}\ncclnet: {image_to_text: 0.5, swap: {keep: 0.2}}\n"
    )

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "base": str(recipe),
            "method": "grid",
            "space": {WEIGHT: {"values": [0.1, 1.0]}, KEEP: {"values": [0.0, 0.2, 1.0]}},
        }
        path = folder / "search.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def ended(name: str, config: dict[str, Any], score: float | None, **rest: Any) -> SweepTrial:
    """A trial with one score; a failed one without."""
    if score is None:
        return SweepTrial(name, config, "failed", error="no cluster", **rest)
    scores = {"mAP": score, "rank1": score + 1}
    return SweepTrial(
        name, config, rest.pop("status", "finished"), scores, runs={"0": scores}, **rest
    )
