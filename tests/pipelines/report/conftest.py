"""A finished run that the tests of the report read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.fake_run import fake_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("report")
    return fake_run(base / "demo-7", base / "data")
