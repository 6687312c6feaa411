"""The input path: image files -> Ray Data -> one worker's slices of the global batches.

A plan fixes the global batches of an epoch, and every worker streams its own slices of them. A
block holds the slices of a few consecutive batches; every row carries its batch, rank and position,
and `training_batches` checks them, so no reordering can pass silently. Every row also carries its
replacements: an image that has become unreadable is replaced in its place by another one of its
cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.data.decode import DecodeAndAugment, Transforms
from pipelines.data.inputs import Inputs
from pipelines.data.plan import BatchShape, Plan
from pipelines.data.replacements import NUM_REPLACEMENTS
from reid_core.types import Batch, Modality

_NODE_LABEL = "ray.io/node-id"  # Ray gives it to every node


def block_spans(num_batches: int, longest: int) -> list[slice]:
    """Consecutive batches of each block: 1, 2, 4, ... `longest`.

    An epoch starts as soon as its first block is decoded, so that one is short.
    """
    spans: list[slice] = []
    start, size = 0, 1
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
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task per block, in the order of the batches."""
        spans = block_spans(self._plan.num_batches, self._batches_per_block)
        return [self._task(batches) for batches in spans]

    def _task(self, batches: slice) -> ReadTask:
        plan = self._plan
        tables = {m: plan.rank_slice(m, batches, self._rank, self._world) for m in plan.rows}
        paths = {m: _paths(self._inputs.paths[m], table) for m, table in tables.items()}
        root = self._inputs.root
        num_rows = sum(len(table) for table in tables.values())
        size = num_rows * (3 * self._inputs.height * self._inputs.width + 64)
        return ReadTask(lambda: [_block(tables, paths, root)], BlockMetadata(num_rows, size, None))


def _paths(known: np.ndarray, table: pa.Table) -> dict[str, pa.Array]:
    """Columns path, path1, ... of the rows and of their replacements; empty where there is none."""
    found = {}
    for number in ("", *range(1, 1 + NUM_REPLACEMENTS)):
        rows = table[f"row{number}"].to_numpy()
        # Arrow holds a quarter of NumPy's bytes, and a read task is stored until the epoch ends.
        found[f"path{number}"] = pa.array(np.where(rows < 0, "", known[rows]))
    return found


def _block(
    tables: Mapping[Modality, pa.Table],
    paths: Mapping[Modality, Mapping[str, pa.Array]],
    root: Path,
) -> pa.Table:
    """Rows of a block with their files: batch by batch, all modalities of a batch together."""
    parts = []
    for m, table in tables.items():
        for name, column in paths[m].items():
            whole = [str(root / path) if path else "" for path in column.to_pylist()]
            table = table.append_column(name, pa.array(whole))
        parts.append(table.append_column("modality", pa.array([str(m)] * len(table))))
    block = pa.concat_tables(parts)
    return block.take(np.argsort(block["batch"].to_numpy(), kind="stable"))


def plan_dataset(
    plan: Plan,
    inputs: Inputs,
    transforms: Transforms,
    *,
    rank: int,
    world: int,
    batches_per_block: int,
    num_tasks: int,
    node: str | None = None,
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
        node: id of the node that decodes; None for any.
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
        "label_selector": None if node is None else {_NODE_LABEL: node},
    }
    # One block per read task: with a higher parallelism Ray Data would cut the blocks smaller.
    return ray.data.read_datasource(source, override_num_blocks=1, **where).map_batches(
        decode.__call__, batch_size=None, **where
    )


def training_batches(
    blocks: Iterable[Mapping[str, np.ndarray]],
    *,
    shape: BatchShape,
    rank: int,
    world: int,
    tokens: np.ndarray | None = None,
) -> Iterator[dict[Modality, Batch]]:
    """One worker's batches, checked to be the ones of the plan in its order.

    Args:
        blocks: columns of `shape.num_lines` lines each, in order.
        shape: of a global batch.
        rank, world: this worker.
        tokens: (n captions, 77) token ids, where the plan names captions.

    Raises:
        RuntimeError: a line that does not belong to this batch, rank or position.
    """
    parts, views = shape.parts(rank, world), shape.views
    expected = np.concatenate(
        [np.arange(views[m] * part.start, views[m] * part.stop) for m, part in parts.items()]
    )
    for number, columns in enumerate(blocks):
        found = (columns["batch"], columns["rank"], columns["position"])
        right = (
            len(found[0]) == len(expected)
            and np.all(found[0] == number)
            and np.all(found[1] == rank)
            and np.array_equal(found[2], expected)
        )
        if not right:
            raise RuntimeError(
                f"worker {rank} expected batch {number} of the plan and received batches "
                f"{np.unique(found[0])} of ranks {np.unique(found[1])}, {len(found[0])} lines "
                f"instead of {len(expected)}: the data stream was reordered"
            )
        yield _split(columns, parts, views, tokens)


def _split(
    columns: Mapping[str, np.ndarray],
    parts: Mapping[Modality, slice],
    views: Mapping[Modality, int],
    tokens: np.ndarray | None,
) -> dict[Modality, Batch]:
    batches, start = {}, 0
    for m, part in parts.items():
        lines = slice(start, start + views[m] * (part.stop - part.start))
        firsts = slice(start, lines.stop, views[m])
        batches[m] = Batch(
            images=torch.tensor(columns["image"][lines]),
            rows=torch.tensor(columns["row"][firsts]),
            labels=torch.tensor(columns["label"][firsts]),
            planned=torch.tensor(columns["planned"][firsts]),
        )
        if tokens is not None:
            captions = columns["caption"][firsts]
            batches[m] = replace(
                batches[m], captions=torch.tensor(captions), tokens=torch.tensor(tokens[captions])
            )
        start = lines.stop
    return batches
