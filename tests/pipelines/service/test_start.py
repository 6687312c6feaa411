"""Replicas that do not start are said as what their nodes may lack."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

serve = pytest.importorskip("ray.serve")

from pipelines.errors import UserError  # noqa: E402
from pipelines.service.start import start  # noqa: E402


def test_replicas_that_do_not_see_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> NoReturn:
        raise RuntimeError("Deploying application crossreid failed: no such gallery")

    monkeypatch.setattr(serve, "run", fails)
    bound: Any = None
    with pytest.raises(UserError, match=r"no such gallery\nEvery node must see the gallery /a.*un"):
        start(bound, "crossreid", "/a")
