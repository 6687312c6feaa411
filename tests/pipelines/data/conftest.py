"""What the tests of converted data share."""

from __future__ import annotations

import pytest

from pipelines.cluster import session as cluster
from pipelines.data import convert as conversion
from pipelines.data import one_shard
from pipelines.errors import UserError


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards are written one after the other here; says which."""
    written: list[int] = []

    def write(parts, root, target, shape):
        wrong = []
        for part, images in parts.items():
            written.append(part)
            wrong += one_shard.write(part, images, root, target, shape)
        if wrong:
            raise UserError("\n".join(wrong))

    class Session:
        def __init__(self, config: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(conversion, "_write_shards", write)
    monkeypatch.setattr(cluster, "session", Session)
    return written
