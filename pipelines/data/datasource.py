"""The input path: image files -> Ray Data -> one worker's slices of the global batches.

A plan fixes the global batches of an epoch, and every worker streams its own slices of them. A
block holds the slices of a few consecutive batches; every row carries its batch, rank and position,
and `batches.training_batches` checks them, so no reordering can pass silently. Every row also
carries its replacements: an image that has become unreadable is replaced in its place by another
one of its cluster.
"""

from __future__ import annotations

from typing import Any

import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.data.batches import PlannedLines
from pipelines.data.decode import DecodeAndAugment, Transforms
from pipelines.data.inputs import Inputs
from pipelines.data.plan import Plan

_NODE_LABEL = "ray.io/node-id"  # Ray gives it to every node


def block_spans(num_batches: int, longest: int, first: int = 0) -> list[slice]:
    """Consecutive batches of each block, from `first` on: 1, 2, 4, ... `longest`.

    An epoch starts as soon as its first block is decoded, so that one is short.
    """
    spans: list[slice] = []
    start, size = first, 1
    while start < num_batches:
        spans.append(slice(start, min(start + size, num_batches)))
        start, size = start + size, min(2 * size, longest)
    return spans


class PlanDatasource(Datasource):
    """Read tasks for one worker's share of a plan.

    Args:
        plan: the global batches.
        inputs: where the images are.
        rank, world: whose slices, of how many workers.
        batches_per_block: most consecutive global batches per read task.
    """

    def __init__(
        self, plan: Plan, inputs: Inputs, *, rank: int, world: int, batches_per_block: int
    ) -> None:
        self._plan, self._inputs = plan, inputs
        self._rank, self._world = rank, world
        self._batches_per_block = batches_per_block

    def get_name(self) -> str:
        """Shown on the Ray dashboard."""
        return "TrainingPlan"

    def estimate_inmemory_data_size(self) -> int | None:
        """Left to the read tasks, which know it."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """One task per block, in the order of the batches."""
        spans = block_spans(self._plan.num_batches, self._batches_per_block, self._plan.first)
        return [self._task(batches) for batches in spans]

    def _task(self, batches: slice) -> ReadTask:
        inputs = self._inputs
        lines = PlannedLines.of(self._plan, inputs, batches, rank=self._rank, world=self._world)
        size = lines.num_rows * (3 * inputs.height * inputs.width + 64)
        return ReadTask(lambda: [lines.block()], BlockMetadata(lines.num_rows, size, None))


def plan_dataset(
    plan: Plan,
    inputs: Inputs,
    transforms: Transforms,
    *,
    rank: int,
    world: int,
    batches_per_block: int,
    num_tasks: int,
    node: str,
) -> ray.data.Dataset:
    """One worker's share of an epoch, decoded and augmented.

    To be read with `preserve_order`: the plan has an order.

    Args:
        plan: the global batches.
        inputs: where the images are.
        transforms: per modality, one for each view.
        rank, world: whose slices, of how many workers.
        batches_per_block: most consecutive global batches per task.
        num_tasks: that decode at a time. They reserve no CPU: a stream that waited for one which
            others have reserved would stop its worker, and with it all workers.
        node: id of the node that decodes, others where it takes no tasks, since it will be taken
            away.
    """
    source = PlanDatasource(
        plan, inputs, rank=rank, world=world, batches_per_block=batches_per_block
    )
    decode = DecodeAndAugment(
        height=inputs.height,
        width=inputs.width,
        transforms=transforms,
        max_megapixels=inputs.max_megapixels,
        decoded=inputs.decoded,
    )
    # Equal for both, or Ray Data would not run them as one task.
    where: dict[str, Any] = {
        "num_cpus": 0,
        "compute": ray.data.TaskPoolStrategy(size=num_tasks),
        "label_selector": {_NODE_LABEL: node},
        "fallback_strategy": [{"label_selector": {_NODE_LABEL: f"!{node}"}}],
    }
    # One block per read task: with a higher parallelism Ray Data would cut the blocks smaller.
    lines: ray.data.Dataset = ray.data.read_datasource(source, override_num_blocks=1, **where)
    decoded: ray.data.Dataset = lines.map_batches(decode.__call__, batch_size=None, **where)
    return decoded
