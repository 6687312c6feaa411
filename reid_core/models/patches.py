"""Pieces of transformers: patches with positions, runs of blocks, maps whose channels come last.

Shapes: B images, D channels, h x w patches, P tokens (class, registers) in front of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reid_core.models.pooling import resize_positions


class ClipPatches(nn.Module):
    """The front of CLIP's vision transformer: patches, class token, positions, first blocks."""

    def __init__(self, visual: Any, blocks: Iterable[nn.Module]) -> None:
        """Takes the parts out of open_clip's tower."""
        super().__init__()
        self.class_embedding: nn.Parameter = visual.class_embedding
        self.positional_embedding: nn.Parameter = visual.positional_embedding
        self.conv1: nn.Conv2d = visual.conv1
        self.ln_pre: nn.Module = visual.ln_pre
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to tokens (B, 1 + h w, D)."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = x
        return tokens


class Blocks(nn.Module):
    """Transformer blocks and the norm behind them, tokens (B, P + h w, D) to tokens.

    Args:
        blocks: in their order.
        norm: behind the last one.
        rope: rotary positions that the blocks share; None where learnt ones were added alone.
        grid: (h, w) of the patches.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        *,
        rope: Any = None,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.blocks, self.norm, self.rope, self.grid = nn.ModuleList(blocks), norm, rope, grid

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after all blocks, normalized."""
        shared = {}
        if self.rope is not None:
            shared["rope"] = self.rope.get_embed(shape=list(self.grid))
        for block in self.blocks:
            x = block(x, **shared)
        normalized: Tensor = self.norm(x)
        return normalized


class ChannelsFirst(nn.Module):
    """Lets a module whose maps are (B, h, w, D) stand among those of (B, D, h, w)."""

    def __init__(self, module: nn.Module, *, images: bool = False) -> None:
        """With `images` the module's input has its channels first already."""
        super().__init__()
        self.channels_last_inside = True  # for those who look at every map
        self.module, self._images = module, images

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D', h', w')."""
        inputs = maps if self._images else maps.permute(0, 2, 3, 1)
        outputs: Tensor = self.module(inputs)
        return outputs.permute(0, 3, 1, 2)


def patch_projection(stem: nn.Module) -> nn.Module:
    """What turns pixels into patches, in the stem of a transformer.

    Raises:
        ValueError: a convolutional stem.
    """
    for name in ("conv1", "patch_embed", "patches"):
        if isinstance(stem, nn.Sequential) and name == "conv1":
            continue  # a ResNet's first convolution is no patch
        if isinstance(projection := getattr(stem, name, None), nn.Module):
            return projection
    raise ValueError("model.freeze_patches: this image tower has no patches; leave it false")


class MeanPool(nn.Module):
    """(B, D, h, w) maps to their means (B, D), float32."""

    def forward(self, maps: Tensor) -> Tensor:
        """The mean over positions."""
        return maps.float().mean(dim=(2, 3))


def fit_clip_patches(visual: Any, *, stride: int, grid: tuple[int, int]) -> None:
    """Gives open_clip's vision transformer another stride and positions for `grid`, in place."""
    positions = resize_positions(
        visual.positional_embedding.detach(), grid, source=tuple(visual.grid_size)
    )
    visual.positional_embedding = nn.Parameter(positions)
    visual.conv1.stride, visual.grid_size = (stride, stride), grid


def fit_timm_patches(
    visual: Any, *, stride: int, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    """Gives timm's vision transformer another stride and positions for `grid`, in place.

    Learnt positions are resized; rotary ones are computed for the new grid.

    Raises:
        ValueError: a stride that the convolutions in front of the patches cannot give.
    """
    patches = visual.patch_embed
    inside, rest = divmod(stride, getattr(patches, "front_stride", 1))
    if rest:
        raise ValueError(
            f"model.patch_stride={stride}: take an even one with convolutional patches"
        )
    if visual.pos_embed is not None:
        positions = resize_positions(
            visual.pos_embed.detach()[0],
            grid,
            prefix=0 if visual.no_embed_class else visual.num_prefix_tokens,
            source=tuple(patches.grid_size),
        )
        visual.pos_embed = nn.Parameter(positions[None])
    patches.proj.stride = (inside, inside)
    patches.img_size, patches.grid_size, patches.num_patches = size, grid, grid[0] * grid[1]
    if getattr(visual, "rope", None) is not None:
        visual.rope.update_feat_shape(list(grid))
