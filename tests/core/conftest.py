"""What the tests of methods and models share."""

from __future__ import annotations

import pytest

from reid_core.models import clip as clips


@pytest.fixture(scope="module")
def clip() -> clips.Clip:
    """The small CLIP that ships with the package, fresh for every module."""
    return clips.load(clips.SMALL, "bundled")
