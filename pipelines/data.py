"""The input path: image files -> Ray Data -> one worker's slices of the global batches.

A plan fixes the global batches of an epoch. `PlanDatasource` asks for it anew at every execution,
so one Ray Data pipeline serves all epochs. Every block holds one rank's slices of a few
consecutive global batches; every row carries its batch, rank and position, and `training_batches`
checks them, so no reordering can pass silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.collectives import shares
from reid_core.transforms import Augmentation, TrainTransform, decode
from reid_core.types import Batch, Modality

if TYPE_CHECKING:  # its imports would cost every data task two seconds
    from pipelines.config import AugmentationConfig


@dataclass(frozen=True)
class Plan:
    """The global batches of one epoch, per modality (batches, B).

    Attributes:
        rows: int64 row ids of the modality.
        labels: int64 classes.
        seeds: uint64 augmentation seeds.
    """

    rows: dict[Modality, np.ndarray]
    labels: dict[Modality, np.ndarray]
    seeds: dict[Modality, np.ndarray]

    @property
    def num_batches(self) -> int:
        """Steps of the epoch."""
        return len(next(iter(self.rows.values())))

    def rank_slice(self, modality: Modality, batches: slice, rank: int, world: int) -> pa.Table:
        """Rank's share of some consecutive global batches, batch-major."""
        rows = self.rows[modality][batches]
        part = shares(rows.shape[1], world)[rank]
        num, size = rows[:, part].shape
        number = np.arange(batches.start, batches.start + num)
        return pa.table(
            {
                "row": rows[:, part].ravel(),
                "label": self.labels[modality][batches, part].ravel(),
                "batch": np.repeat(number, size),
                "rank": np.full(num * size, rank),
                "position": np.tile(np.arange(part.start, part.stop), num),
                "seed": self.seeds[modality][batches, part].ravel(),
            }
        )


@dataclass(frozen=True)
class ImageFiles:
    """Where the rows of each modality lie.

    Attributes:
        root: folder of the data set.
        paths: per modality, (n,) paths relative to it, in row order.
        height, width: size in pixels that images are decoded to.
    """

    root: Path
    paths: dict[Modality, np.ndarray]
    height: int
    width: int

    def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray:
        """Decoded images (B, 3, H, W) uint8 of the given rows."""
        images = np.empty((len(rows), 3, self.height, self.width), dtype=np.uint8)
        for i, path in enumerate(self.paths[modality][rows]):
            images[i] = read_image(self.root / path, height=self.height, width=self.width)
        return images


def read_image(path: Path, *, height: int, width: int) -> np.ndarray:
    """One decoded image (3, H, W) uint8.

    Raises:
        ValueError: cannot be read or decoded; names the file.
    """
    try:
        return decode(path.read_bytes(), height=height, width=width)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


class PlanDatasource(Datasource):
    """Read tasks for the plan of the day.

    Args:
        fetch_plan: returns the current plan; called at each execution of the data set.
        files: where the images are.
        world: number of workers that share each batch.
        batches_per_block: consecutive global batches per read task and rank.
    """

    def __init__(
        self,
        fetch_plan: Callable[[], Plan | None],
        files: ImageFiles,
        *,
        world: int,
        batches_per_block: int,
    ) -> None:
        self._fetch_plan = fetch_plan
        self._files = files
        self._world = world
        self._batches_per_block = batches_per_block

    def get_name(self) -> str:
        """Shown on the Ray dashboard."""
        return "TrainingPlan"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before the plan is made."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task per block; blocks run batch-major, ranks in turn.

        Ray Data also asks when the data set is defined, before any plan exists.
        """
        plan = self._fetch_plan()
        if plan is None:
            return []
        step = self._batches_per_block
        tasks = []
        for start in range(0, plan.num_batches, step):
            batches = slice(start, min(start + step, plan.num_batches))
            for rank in range(self._world):
                tasks.append(self._task(plan, batches, rank))
        return tasks

    def _task(self, plan: Plan, batches: slice, rank: int) -> ReadTask:
        tables = {m: plan.rank_slice(m, batches, rank, self._world) for m in plan.rows}
        paths = {m: self._files.paths[m][table["row"].to_numpy()] for m, table in tables.items()}
        root = self._files.root
        num_rows = sum(len(table) for table in tables.values())
        size = num_rows * (3 * self._files.height * self._files.width + 64)
        return ReadTask(lambda: [_block(tables, paths, root)], BlockMetadata(num_rows, size, None))


def _block(
    tables: Mapping[Modality, pa.Table], paths: Mapping[Modality, np.ndarray], root: Path
) -> pa.Table:
    """Rows of a block with their files: batch by batch, all modalities of a batch together."""
    parts = [
        table.append_column(
            "path", pa.array([str(root / path) for path in paths[m]])
        ).append_column("modality", pa.array([str(m)] * len(table)))
        for m, table in tables.items()
    ]
    block = pa.concat_tables(parts)
    return block.take(np.argsort(block["batch"].to_numpy(), kind="stable"))


class DecodeAndAugment:
    """Adds the augmented image (3, H, W) uint8 to every row of a block."""

    def __init__(self, files: ImageFiles, augmentation: AugmentationConfig) -> None:
        self._size = {"height": files.height, "width": files.width}
        self._transforms = transforms(augmentation)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows with paths -> rows with images."""
        paths, modality = block.pop("path"), block.pop("modality")
        decoded = np.stack([read_image(Path(path), **self._size) for path in paths])
        images = np.empty_like(decoded)
        for name, transform in self._transforms.items():
            mine = modality == str(name)
            images[mine] = transform(decoded[mine], block["seed"][mine])
        return block | {"image": images}


def transforms(augmentation: AugmentationConfig) -> dict[Modality, TrainTransform]:
    """The training transform of each modality; infrared has no colours to lose."""
    settings = augmentation.model_dump()
    infrared = settings | {"grayscale": 0.0}
    return {
        Modality.VISIBLE: TrainTransform(Augmentation(**settings)),
        Modality.INFRARED: TrainTransform(Augmentation(**infrared)),
    }


def plan_dataset(
    fetch_plan: Callable[[], Plan | None],
    files: ImageFiles,
    augmentation: AugmentationConfig,
    *,
    world: int,
    batches_per_block: int,
) -> ray.data.Dataset:
    """The training data set: each iteration over it streams the plan that is current then."""
    source = PlanDatasource(fetch_plan, files, world=world, batches_per_block=batches_per_block)
    # One block per read task: with a higher parallelism Ray Data would cut the blocks smaller.
    return ray.data.read_datasource(source, override_num_blocks=1).map_batches(
        DecodeAndAugment(files, augmentation).__call__, batch_size=None
    )


def training_batches(
    blocks: Iterable[Mapping[str, np.ndarray]],
    *,
    sizes: Mapping[Modality, int],
    rank: int,
    world: int,
) -> Iterator[dict[Modality, Batch]]:
    """One worker's batches, checked to be the ones of the plan in its order.

    Args:
        blocks: columns of `sum of this rank's shares` rows each, in order.
        sizes: rows of a global batch, per modality.
        rank, world: this worker.

    Raises:
        RuntimeError: a row that does not belong to this batch, rank or position.
    """
    parts = {m: shares(size, world)[rank] for m, size in sizes.items()}
    expected = np.concatenate([np.arange(part.start, part.stop) for part in parts.values()])
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
                f"{np.unique(found[0])} of ranks {np.unique(found[1])}, {len(found[0])} rows "
                f"instead of {len(expected)}: the data stream was reordered"
            )
        yield _split(columns, parts)


def _split(
    columns: Mapping[str, np.ndarray], parts: Mapping[Modality, slice]
) -> dict[Modality, Batch]:
    batches, start = {}, 0
    for modality, part in parts.items():
        rows = slice(start, start + part.stop - part.start)
        batches[modality] = Batch(
            images=torch.tensor(columns["image"][rows]),
            rows=torch.tensor(columns["row"][rows]),
            labels=torch.tensor(columns["label"][rows]),
        )
        start = rows.stop
    return batches


def find_unreadable(
    files: ImageFiles, modality: Modality, rows: Sequence[int] | np.ndarray
) -> list[tuple[int, str]]:
    """Rows that cannot be decoded, with the reason that names the file."""
    broken = []
    for row in rows:
        try:
            read_image(
                files.root / files.paths[modality][row], height=files.height, width=files.width
            )
        except ValueError as error:
            broken.append((int(row), str(error)))
    return broken
