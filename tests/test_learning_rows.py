"""Every row of the learning tables is a recipe that would train."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pipelines.config import run as configuration

ROWS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "coupling_rows.py"))["ROWS"]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_a_recipe(row: str) -> None:
    recipe, *overrides = ROWS[row]
    assert configuration.load(Path(recipe), ["data.root=/data", *overrides]).method
