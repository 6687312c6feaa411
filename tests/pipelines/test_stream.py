"""What a worker may use of its node."""

from __future__ import annotations

import pytest

from pipelines.errors import UserError
from pipelines.stream import share_of


def node(cpus: float, store: float = 80.0) -> dict[str, float]:
    return {"CPU": cpus, "object_store_memory": store}


@pytest.mark.parametrize(
    ("cpus", "workers", "reserved", "expected"),
    [(16, 1, 4, 12), (16, 4, 2, 2), (11, 2, 2, 3), (5, 4, 1, 1)],
)
def test_workers_share_what_they_leave_free(
    cpus: int, workers: int, reserved: int, expected: int
) -> None:
    share = share_of(node(cpus), workers, reserved)
    assert share.cpu == expected
    assert share.object_store_memory == 80 / (2 * workers)


def test_a_node_whose_workers_reserve_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"2 workers.*cpus_per_worker=4 reserve all 8 CPUs.*lower"):
        share_of(node(8), 2, 4)
