"""What the tests of the machinery share.

The process that hands out tests reads this file too, so fixtures import what they need.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The identities that all small runs train on, a tree per layout. Read only."""
    from tests.pipelines import small_runs

    root = tmp_path_factory.mktemp("trees")
    small_runs.write_trees(root)
    return root
