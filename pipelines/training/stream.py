"""One worker's stream of batches: its slices of the plan, through Ray Data, on its own node.

Every worker runs its own stream, so no batch crosses the network, no process serves them all, and
a node that goes takes nobody else's images with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import ray
import ray.data

from pipelines.cluster.nodes import free
from pipelines.config.run import RunConfig
from pipelines.data.batches import training_batches
from pipelines.data.datasource import plan_dataset
from pipelines.distributed import collectives
from pipelines.training.epoch import EpochStart
from pipelines.training.job import Job
from reid_core.types import Batch, Modality

_MOST_TASKS = 16  # feed 20,000 images of 288 x 144 per second; each is a process of 0.4 GB


@dataclass(frozen=True)
class Share:
    """What one worker may use of its node.

    Attributes:
        node: its id.
        num_tasks: that decode at a time, at least 1.
        num_bytes: of decoded images that may wait.
    """

    node: str
    num_tasks: int
    num_bytes: float

    @classmethod
    def of(cls, node: str, resources: Mapping[str, float], workers: int, reserved: int) -> Share:
        """An equal part of what the node's workers leave free.

        Args:
            node: its id.
            resources: of the node, as Ray names them.
            workers: on the node.
            reserved: CPUs of each worker.
        """
        free = int(resources["CPU"]) // workers - reserved
        waiting = resources["object_store_memory"] / (2 * workers)
        return cls(node, min(max(1, free), _MOST_TASKS), waiting)


def share_of_node(config: RunConfig) -> Share:
    """This worker's share of its node; all workers of a group ask together.

    Workers of other runs are there too: as many as there are GPUs that somebody has reserved.
    """
    here = ray.get_runtime_context().get_node_id()
    (resources,) = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
    workers = collectives.of_every_process(here).count(here)
    taken = resources.get("GPU", 0) - free("GPU").get(here, 0)
    return Share.of(here, resources, max(workers, ceil(taken)), config.trainer.cpus_per_worker)


def batches(
    job: Job, share: Share, rank: int, world: int, start: EpochStart
) -> Iterator[dict[Modality, Batch]]:
    """One worker's batches of an epoch.

    Args:
        job: the work.
        share: where they are decoded.
        rank, world: whose slices, of how many workers.
        start: of the epoch.
    """
    config, shape = job.config, start.plan.shape
    stream = plan_dataset(
        start.plan,
        job.train,
        job.transforms,
        rank=rank,
        world=world,
        batches_per_block=config.trainer.batches_per_block,
        num_tasks=share.num_tasks,
        node=share.node,
    )
    stream.context.execution_options = ray.data.ExecutionOptions(
        preserve_order=True,
        resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=share.num_bytes),
    )
    stream.context.enable_progress_bars = False
    blocks = stream.iter_batches(
        batch_size=shape.num_lines(rank, world), batch_format="numpy", prefetch_batches=2
    )
    return training_batches(
        blocks,
        shape=shape,
        rank=rank,
        world=world,
        tokens=job.train.tokens,
        first=start.plan.first,
    )
