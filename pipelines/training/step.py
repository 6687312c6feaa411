"""One step of the optimizer: losses, backward, memory update; in parts where space is short."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from pipelines.config.trainer import TrainerConfig
from pipelines.distributed import batchnorm, collectives
from pipelines.distributed.precision import autocast
from pipelines.training.global_loss import Means, total_loss
from reid_core.models.activation_checkpointing import checkpoint_blocks
from reid_core.stage import Stage
from reid_core.types import Batch, Modality

Distribute = Callable[[nn.Module, torch.optim.Optimizer], nn.Module]
"""Makes a module take the same step on all workers; returns what is called in its place."""

# Buffers are equal on all workers as it is; torch 2.13 has a new name for leaving them alone.
_OWN_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


def data_parallel(module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """DDP: one process per worker, gradients averaged while they are computed."""
    if collectives.world_size() == 1:
        return module
    device = next(module.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        module, device_ids=ids, gradient_as_bucket_view=True, **_OWN_BUFFERS
    )


def make_ready(stage: Stage, settings: TrainerConfig, device: torch.device) -> None:
    """Put a stage on its device, ready for several workers."""
    if collectives.world_size() > 1:
        batchnorm.convert(stage.module)
    if settings.activation_checkpointing:
        checkpoint_blocks(stage.module)
    # Channels last is a third faster, on CPUs and on tensor cores.
    for module in (stage.encoder, stage.module):
        assert isinstance(module, nn.Module)
        module.to(device).to(memory_format=torch.channels_last)


def compress_gradients(model: nn.Module) -> None:
    """Let the workers of a distributed module exchange gradients rounded to bfloat16."""
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, bf16_compress_hook)


def compile_model(model: nn.Module, settings: TrainerConfig, device: torch.device) -> None:
    """Let the compiler fuse the operations of a stage's model.

    A GPU whose worker is alone also replays them as CUDA graphs, or it would wait for the host to
    launch them. Parts of a batch and several workers need what a replay would overwrite.
    """
    torch.compiler.reset()  # what an earlier stage left, graphs and their memory
    alone = collectives.world_size() == 1 and settings.gradient_accumulation == 1
    model.compile(mode="reduce-overhead" if device.type == "cuda" and alone else None)


def take(
    stage: Stage,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    means: Means,
    *,
    settings: TrainerConfig,
) -> None:
    """Step on one global batch, of which this worker holds its slice.

    With `settings.gradient_accumulation` = n the slice is worked on in n parts. The gradient is the
    mean of theirs. It is not that of the whole batch: BatchNorm sees a part at a time, and
    prototypes are updated after every part, so a later part meets those that an earlier one has
    moved.

    Args:
        stage: gives the losses and updates its memory.
        model: the stage's module, distributed.
        optimizer: of the module.
        batch: of a streamed stage a `Batch` per modality, on the device; else what it yielded.
        means: the epoch's.
        settings: precision and parts.
    """
    device = next(stage.module.parameters()).device
    num = settings.gradient_accumulation if isinstance(batch, dict) else 1
    optimizer.zero_grad(set_to_none=True)
    for part in [batch] if num == 1 else _parts(batch, num):
        with autocast(device, settings.precision):
            terms = stage.terms(model, part, collectives.gather)
            total = total_loss(terms, means) / num
        total.backward()
        if num > 1:
            stage.update(collectives.gather_rows)
    optimizer.step()
    if num == 1:
        stage.update(collectives.gather_rows)


def _parts(batch: dict[Modality, Batch], num: int) -> Iterator[dict[Modality, Batch]]:
    """Consecutive rows of every modality, all their views together."""
    shares = {m: collectives.shares(len(whole.rows), num) for m, whole in batch.items()}
    for index in range(num):
        yield {m: whole.cut(shares[m][index]) for m, whole in batch.items()}
