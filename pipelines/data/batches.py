"""From a plan to one worker's batches: the lines of a block, and the check that none moved.

The same for every stream: Ray Data, the local trainer, tests. A line is a view of a planned row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipelines.data.decode import located
from pipelines.data.inputs import Inputs
from pipelines.data.plan import BatchShape, Plan
from pipelines.data.replacements import NUM_REPLACEMENTS
from reid_core.types import Batch, Modality


@dataclass(frozen=True)
class PlannedLines:
    """One worker's lines of some consecutive global batches, before any file is read.

    Attributes:
        tables: per modality, see `Plan.rank_slice`.
        paths: per modality, columns path, path1, ... of the rows and of their replacements.
        root: folder that they are relative to, or its URI.
    """

    tables: dict[Modality, pa.Table]
    paths: dict[Modality, dict[str, pa.Array]]
    root: Path

    @classmethod
    def of(
        cls, plan: Plan, inputs: Inputs, batches: slice, *, rank: int, world: int
    ) -> PlannedLines:
        """The lines of rank's slices, of `world` workers, of some consecutive batches."""
        tables = {m: plan.rank_slice(m, batches, rank, world) for m in plan.rows}
        paths = {m: _paths(inputs.paths[m], table) for m, table in tables.items()}
        return cls(tables, paths, inputs.root)

    @property
    def num_rows(self) -> int:
        """Lines of all modalities."""
        return sum(len(table) for table in self.tables.values())

    def block(self) -> pa.Table:
        """Lines with their files: batch by batch, all modalities of a batch together."""
        parts = []
        for m, table in self.tables.items():
            for name, column in self.paths[m].items():
                whole = located(self.root, column.to_pylist())
                table = table.append_column(name, pa.array(whole))
            parts.append(table.append_column("modality", pa.array([str(m)] * len(table))))
        block = pa.concat_tables(parts)
        return block.take(np.argsort(block["batch"].to_numpy(), kind="stable"))


def columns_of(block: pa.Table) -> dict[str, np.ndarray]:
    """A block as NumPy columns."""
    return {name: block[name].to_numpy(zero_copy_only=False) for name in block.column_names}


def training_batches(
    blocks: Iterable[Mapping[str, np.ndarray]],
    *,
    shape: BatchShape,
    rank: int,
    world: int,
    tokens: np.ndarray | None = None,
    first: int = 0,
) -> Iterator[dict[Modality, Batch]]:
    """One worker's batches, checked to be the ones of the plan in its order.

    Args:
        blocks: columns of `shape.num_lines` lines each, in order.
        shape: of a global batch.
        rank, world: this worker.
        first: number of the batch that the blocks begin with.
        tokens: (n captions, 77) token ids, where the plan names captions.

    Raises:
        RuntimeError: a line that does not belong to this batch, rank or position.
    """
    parts, views = shape.parts(rank, world), shape.views
    expected = np.concatenate(
        [np.arange(views[m] * part.start, views[m] * part.stop) for m, part in parts.items()]
    )
    for number, columns in enumerate(blocks, start=first):
        result = (columns["batch"], columns["rank"], columns["position"])
        right = (
            len(result[0]) == len(expected)
            and np.all(result[0] == number)
            and np.all(result[1] == rank)
            and np.array_equal(result[2], expected)
        )
        if not right:
            raise RuntimeError(
                f"worker {rank} expected batch {number} of the plan and received batches "
                f"{np.unique(result[0])} of ranks {np.unique(result[1])}, {len(result[0])} lines "
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
            images=_without_copy(columns["image"][lines]),
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


def _without_copy(images: np.ndarray) -> torch.Tensor:
    """Images in place, unless their memory is shared and must not be written."""
    return torch.from_numpy(images) if images.flags.writeable else torch.tensor(images)


def _paths(known: np.ndarray, table: pa.Table) -> dict[str, pa.Array]:
    """Columns path, path1, ... of the rows and of their replacements; empty where there is none."""
    result = {}
    for number in ("", *range(1, 1 + NUM_REPLACEMENTS)):
        rows = table[f"row{number}"].to_numpy()
        # Arrow holds a quarter of NumPy's bytes, and a read task is stored until the epoch ends.
        result[f"path{number}"] = pa.array(np.where(rows < 0, "", known[rows]))
    return result
