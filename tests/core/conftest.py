"""What the tests of methods and models share."""

from __future__ import annotations

import pytest

from reid_core.models import backbones


@pytest.fixture(scope="module")
def clip() -> backbones.Backbone:
    """The small CLIP that ships with the package, fresh for every module."""
    return backbones.load(backbones.SMALL, "bundled")


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    """The same one before it has learned anything."""
    return backbones.load(backbones.SMALL, seed=1)
