"""The training stream without Ray: read tasks and map, called one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.data.datasource import PlanDatasource
from pipelines.data.decode import DecodeAndAugment, Transforms
from pipelines.data.inputs import Inputs
from pipelines.data.plan import Plan


def blocks(
    plan: Plan, inputs: Inputs, transforms: Transforms, *, rank: int, world: int
) -> Iterator[dict[str, np.ndarray]]:
    """One rank's batches as Ray Data would hand them over."""
    source = PlanDatasource(plan, inputs, rank=rank, world=world, batches_per_block=2)
    decode = DecodeAndAugment(height=inputs.height, width=inputs.width, transforms=transforms)
    for task in source.get_read_tasks(1):
        (block,) = list(task())
        columns = {name: block[name].to_numpy(zero_copy_only=False) for name in block.column_names}
        columns = decode(columns)
        for number in np.unique(columns["batch"]):
            yield {name: column[columns["batch"] == number] for name, column in columns.items()}
