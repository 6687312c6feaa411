"""Recomputed activations change the memory of a step and nothing else."""

from __future__ import annotations

from copy import deepcopy

import torch
from timm.models import eva, vision_transformer
from torch import nn

from reid_core.models import backbones
from reid_core.models.activation_checkpointing import _BLOCKS, checkpoint_blocks
from reid_core.models.encoders import ImageEncoder
from reid_core.models.text_image import TextImageEncoder


def step(module: nn.Module, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients and buffers after one backward pass."""
    result = module(*inputs)
    outputs = [result.neck, result.projected] if hasattr(result, "neck") else result
    sum(x.square().mean() for x in outputs).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return gradients | dict(module.named_buffers())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_and_running_statistics_of_a_resnet() -> None:
    plain = ImageEncoder(backbones.load("crossreid-small"), height=64, width=32).train()
    plain.requires_grad_(True)
    short = deepcopy(plain)
    checkpoint_blocks(short)
    images = torch.randint(0, 256, (2, 6, 3, 64, 32), dtype=torch.uint8)
    assert_same(step(plain, *images), step(short, *images))


def test_every_block_of_the_towers_that_are_taken_is_known() -> None:
    blocks = {
        kind
        for module in (vision_transformer, eva)
        for name, kind in vars(module).items()
        if "Block" in name and isinstance(kind, type) and kind.__module__ == module.__name__
    }
    assert blocks <= set(_BLOCKS)


def test_gradients_of_a_transformer() -> None:
    plain = TextImageEncoder(backbones.load("crossreid-small"), height=64, width=32).train()
    short = deepcopy(plain)
    checkpoint_blocks(short)
    images = torch.randn(3, 3, 64, 32)
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([49406, 320, 500, 49407])
    assert_same(step(plain, images, tokens), step(short, images, tokens))


def test_evaluation_is_untouched() -> None:
    encoder = ImageEncoder(backbones.load("crossreid-small"), height=64, width=32).eval()
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    before = encoder(images, None).neck
    checkpoint_blocks(encoder)
    torch.testing.assert_close(encoder(images, None).neck, before)
