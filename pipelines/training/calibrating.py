"""What a finished run's cosines mean, fitted on the cluster: on what a worker had.

The driver and its machine need not have a GPU, or room for the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines.config.run import RunConfig
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrate import calibrate_finished, in_words
from pipelines.runs import warned

_LONGEST_WAIT_S = 60  # the workers have just given back what it needs


def on_the_cluster(config: RunConfig, run_dir: Path, share: dict[str, float]) -> str:
    """Calibrate a run that is not, as a task with one worker's share of the cluster.

    Args:
        config, run_dir: of the run, which is trained.
        share: CPUs and GPUs that one of its workers had.

    Returns:
        Why it was not done, in words; empty where it was.
    """
    try:
        if calibrated.load(run_dir) is not None:
            return ""
        with _reserved(share) as room:
            if not room.wait(_LONGEST_WAIT_S):
                return f"the cluster had no room for it within {_LONGEST_WAIT_S} s"
            task = ray.remote(_calibrate).options(
                num_cpus=share["CPU"],
                num_gpus=share.get("GPU", 0),
                max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(room),
            )
            return ray.get(task.remote(config, run_dir, "GPU" in share))
    except Exception as error:  # Ray raises many classes here, and the run is trained
        return in_words(error)


@contextmanager
def _reserved(share: dict[str, float]) -> Iterator[PlacementGroup]:
    room = ray.util.placement_group([share])
    try:
        yield room
    finally:
        ray.util.remove_placement_group(room)


def _calibrate(config: RunConfig, run_dir: Path, use_gpu: bool) -> str:
    torch.set_num_threads(config.trainer.cpus_per_worker)
    with warned.kept(run_dir):
        return calibrate_finished(run_dir, torch.device("cuda" if use_gpu else "cpu"))
