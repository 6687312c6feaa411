"""Every row of the learning tables is a recipe that would train."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.coupling_rows import ROWS
from pipelines import config as configuration


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_a_recipe(row: str) -> None:
    recipe, *overrides = ROWS[row]
    assert configuration.load(Path(recipe), ["data.root=/data", *overrides]).method
