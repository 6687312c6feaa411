"""What a worker's stream may use of its node."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray
from ray._private.state import state

from pipelines.config.run import RunConfig
from pipelines.training import stream
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


@pytest.mark.parametrize(("free_gpus", "num_tasks"), [(1.1, 15), (0.1, 7), (0.0, 7)])
def test_workers_of_other_runs_have_their_part_of_a_node(
    make_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    free_gpus: float,
    num_tasks: int,
) -> None:
    """Of two GPUs this worker has 0.9; a bank or another run the rest."""
    node = {"NodeID": "n", "Resources": {"CPU": 16.0, "GPU": 2.0, "object_store_memory": 80.0}}
    context = SimpleNamespace(get_node_id=lambda: "n")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    unreserved = {"n": {"GPU": free_gpus}}
    monkeypatch.setattr(state, "available_resources_per_node", lambda: unreserved)
    assert stream.share_of_node(make_config()).num_tasks == num_tasks
