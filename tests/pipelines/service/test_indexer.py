"""What requests add is answered at once; the index takes it in beside them."""

from __future__ import annotations

from pathlib import Path
from threading import Event, current_thread, main_thread

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipelines.retrieval import neighbors
from pipelines.retrieval.gallery import Facts, Gallery
from pipelines.service.desk import Desk
from reid_core.types import Modality
from tests.pipelines.trained import random_rows


def test_an_addition_does_not_wait_for_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Gallery.create(tmp_path, Facts("f", "descriptor", 16, "/run"))
    desk = Desk(
        opened, calibrated=None, modalities=(Modality.VISIBLE,), size=(64, 32), uploads=tmp_path
    )
    begun, goes_on, looks = Event(), Event(), []

    def builds(table: object, *, recall: float | None) -> None:
        assert current_thread() is not main_thread()
        looks.append(recall)
        begun.set()
        assert goes_on.wait(60)

    monkeypatch.setattr(neighbors, "keep_indexed", builds)
    rows: np.ndarray = random_rows(4, 16, seed=0)
    assert desk.add(b"0", rows[0], Modality.VISIBLE).rows == 1
    assert begun.wait(60)
    for number in range(1, 4):
        assert desk.add(bytes([number]), rows[number], Modality.VISIBLE).new
    goes_on.set()
    desk._indexer._pool.shutdown()
    assert looks == [None, None], "what came meanwhile is looked at once, and with the same recall"
