"""One worker's stream of batches: its slices of the plan, through Ray Data, on its own node.

Every worker runs its own stream, so no batch crosses the network, no process serves them all, and
a node that goes takes nobody else's images with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ray
import ray.data

from pipelines import collectives
from pipelines.config import RunConfig
from pipelines.data import plan_dataset, training_batches
from pipelines.epochs import EpochStart
from pipelines.errors import UserError
from pipelines.loop import Job
from reid_core.methods import METHODS
from reid_core.transforms import TrainTransform
from reid_core.types import Batch, Modality

_NODE_LABEL = "ray.io/node-id"  # Ray gives it to every node


def batches(
    job: Job, options: ray.data.ExecutionOptions, rank: int, world: int, start: EpochStart
) -> Iterator[dict[Modality, Batch]]:
    """One worker's batches of an epoch.

    Args:
        job: the work.
        options: where Ray Data works.
        rank, world: whose slices, of how many workers.
        start: of the epoch.
    """
    config, shape = job.config, start.plan.shape
    views = METHODS[config.method].augmentations(config.augmentation.options())
    stream = plan_dataset(
        start.plan,
        job.train,
        {m: [TrainTransform(view) for view in each] for m, each in views.items()},
        rank=rank,
        world=world,
        batches_per_block=config.trainer.batches_per_block,
    )
    stream.context.execution_options = options
    stream.context.enable_progress_bars = False
    blocks = stream.iter_batches(
        batch_size=shape.num_lines(rank, world), batch_format="numpy", prefetch_batches=2
    )
    return training_batches(blocks, shape=shape, rank=rank, world=world, tokens=job.train.tokens)


def beside_this_worker(config: RunConfig) -> ray.data.ExecutionOptions:
    """Ray Data on this worker's node, with this worker's share of it; called by all workers.

    Raises:
        UserError: see `share_of`.
    """
    here = ray.get_runtime_context().get_node_id()
    (node,) = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
    workers = collectives.of_every_process(here).count(here)
    return ray.data.ExecutionOptions(
        resource_limits=share_of(node, workers, config.trainer.cpus_per_worker),
        preserve_order=True,
        label_selector={_NODE_LABEL: here},
    )


def share_of(
    node: Mapping[str, float], workers: int, cpus_per_worker: int
) -> ray.data.ExecutionResources:
    """What one of a node's workers may decode with: CPUs, and bytes of decoded images.

    Args:
        node: its resources, as Ray names them.
        workers: on the node.
        cpus_per_worker: that each of them reserves.

    Raises:
        UserError: the workers reserve all CPUs.
    """
    free = node["CPU"] - workers * cpus_per_worker
    if free < 1:
        raise UserError(
            f"{workers} workers with trainer.cpus_per_worker={cpus_per_worker} reserve all "
            f"{node['CPU']:.0f} CPUs of a node and leave none to decode images: lower "
            "trainer.cpus_per_worker, or give the node more CPUs"
        )
    return ray.data.ExecutionResources.for_limits(
        cpu=max(1, free // workers), object_store_memory=node["object_store_memory"] / (2 * workers)
    )
