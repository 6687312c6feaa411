"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import ResidualAttentionBlock
from timm.models import eva, resnet, swin_transformer, vision_transformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_BLOCKS = (
    Bottleneck,
    ResidualAttentionBlock,
    resnet.BasicBlock,
    resnet.Bottleneck,
    vision_transformer.Block,
    vision_transformer.ResPostBlock,
    vision_transformer.ParallelScalingBlock,
    vision_transformer.DiffParallelScalingBlock,
    vision_transformer.ParallelThingsBlock,
    eva.EvaBlock,
    eva.EvaBlockPostNorm,
    swin_transformer.SwinTransformerBlock,
)


def checkpoint_blocks(module: nn.Module) -> None:
    """Makes every residual block of any tower keep its input alone, in place.

    A step costs a third more time and a fraction of the memory. Results are the same: running
    statistics of BatchNorm are updated by the first pass only.
    """
    for block in module.modules():
        if isinstance(block, _BLOCKS):
            block.forward = partial(_forward, block, block.forward)  # type: ignore[method-assign]


def _forward(
    block: nn.Module, forward: Callable[..., Tensor], *inputs: Any, **named: Any
) -> Tensor:
    if not block.training:
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm normalizes as in training and remembers nothing."""
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        assert layer.num_batches_tracked is not None
        layer.momentum, layer.num_batches_tracked = 0.0, layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
