"""Fixtures shared by the tests of retrieval: a folder of images, and embedding without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.cluster import session as cluster
from pipelines.retrieval import embed as embedding
from pipelines.retrieval.devices import Place
from pipelines.retrieval.embedder import Embedder, Work
from pipelines.retrieval.sources import Source, parts
from tests.pipelines.trained import draw_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven visible and five infrared images."""
    return draw_folder(tmp_path / "images", visible=7, infrared=5)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts are embedded here rather than by Ray's actors; gives the keys that were."""
    keys: list[str] = []

    def run(work: Work, source: Source, missing: frozenset[str], where: Place) -> Iterator[dict]:
        embedder, wanted = Embedder(work, threads=1), set(missing)
        for part in parts(source.samples()):
            if part.key in wanted:
                wanted.remove(part.key)
                keys.append(part.key)
                row = embedder({"part": np.array([pickle.dumps(part)], dtype=object)})
                yield {name: column[0] for name, column in row.items()}

    class NoRay:
        def __init__(self, config: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(embedding, "_run", run)
    monkeypatch.setattr(cluster, "session", NoRay)
    monkeypatch.setattr(embedding, "_place", lambda config, out, gpu: Place(0, 1))
    return keys


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images are many parts."""
    monkeypatch.setitem(parts.__kwdefaults__, "mean_rows", 2)
