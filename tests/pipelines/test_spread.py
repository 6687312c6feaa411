"""The neighbour search on several machines finds what it finds on one."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.spread import nearest_in_tasks
from reid_core.neighbours import nearest


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("tasks", [1, 3])
def test_number_of_tasks_changes_nothing(local_ray: None, tasks: int) -> None:
    import ray

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 16))
    rows[1500:1600] = rows[:100]  # equal rows are searched once, wherever they stand
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    here = nearest(features, 12)
    spread = nearest_in_tasks(features, 12, [ray.nodes()[0]["NodeID"]] * tasks)
    np.testing.assert_array_equal(spread.rows, here.rows)
    np.testing.assert_array_equal(spread.similarity, here.similarity)
