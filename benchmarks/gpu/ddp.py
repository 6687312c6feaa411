"""What DistributedDataParallel costs a worker that is alone in its group."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu import runs
from benchmarks.gpu.settings import Settings
from pipelines.config.trainer import TrainerConfig
from pipelines.training.global_loss import Means
from pipelines.training.step import compress_gradients


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """One case: CCLNet's first stage."""
    yield "cclnet prepare", partial(measure, settings)


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """The same step without, with, and with compressed gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    dist.init_process_group("nccl" if settings.on_gpu else "gloo", rank=0, world_size=1)
    lines: list[dict[str, Any]] = []

    def probe(
        take: runs.Take, stage: Any, model: Any, optimizer: Any, batch: Any, settings: TrainerConfig
    ) -> None:
        if not lines:
            lines.extend(_compare(bench, take, (stage, model, optimizer, batch), settings))

    bench = settings
    try:
        config = runs.short_config(
            bench, "cclnet", "cclnet.image_to_text=0", "trainer.precision=bf16", small=bench.tiny
        )
        with runs.probed(probe):
            runs.train_here(bench, config, "ddp")
    finally:
        dist.destroy_process_group()
    yield from lines


def _compare(
    bench: Settings, take: runs.Take, parts: tuple[Any, Any, Any, Any], settings: TrainerConfig
) -> Iterator[dict[str, Any]]:
    stage, model, optimizer, batch = parts
    images = runs.num_images(batch)
    ids = [bench.device.index or 0] if bench.on_gpu else None

    def wrapped() -> Any:
        return DistributedDataParallel(stage.module, device_ids=ids, gradient_as_bucket_view=True)

    def compressed() -> Any:
        module = wrapped()
        compress_gradients(module)
        return module

    for name, make in (
        ("none", lambda: model),
        ("DDP", wrapped),
        ("DDP, bf16 buckets", compressed),
    ):
        called = make()
        seconds = bench.seconds_per_call(
            lambda: take(stage, called, optimizer, batch, Means(), settings=settings)  # noqa: B023
        )
        yield {"what": name, "ms": 1000 * seconds, "images/s": images / seconds}
