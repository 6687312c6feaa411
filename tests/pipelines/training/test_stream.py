"""What a worker's stream may use of its node."""

from __future__ import annotations

import pytest

from pipelines.training.stream import Share


@pytest.mark.parametrize(
    ("cpus", "workers", "reserved", "expected"),
    [
        (16, 1, 4, 12),
        (16, 4, 2, 2),
        (11, 2, 2, 3),
        (8, 2, 4, 1),  # nothing is left: still one task, or the run would wait for ever
        (96, 1, 1, 16),
    ],
)
def test_workers_share_what_they_leave_free(
    cpus: int, workers: int, reserved: int, expected: int
) -> None:
    share = Share.of("n", {"CPU": cpus, "object_store_memory": 80.0}, workers, reserved)
    assert share.num_tasks == expected
    assert share.num_bytes == 80 / (2 * workers)
