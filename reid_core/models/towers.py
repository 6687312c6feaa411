"""CLIP's image towers opened up: a ResNet in pieces, either tower for images of any shape.

Knows how open_clip builds an image tower. Shapes: B images, D trunk channels, E joint embedding,
h x w positions of the last feature map or patches.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPool(nn.Module):
    """CLIP's attention pool for a grid of any shape; computes the class token alone.

    Only token 0 of the pool's output is used, so there is one query per head. With one query
    the key and value projections move from the L tokens to the query: q.(Wk x) = (Wk^T q).x and
    sum_j a_j Wv x_j = Wv (sum_j a_j x_j). The result is that of the full attention, the
    cost about a hundredth of it at 18 x 9. Parameter names are CLIP's.
    """

    def __init__(self, pool: nn.Module, *, grid: tuple[int, int]) -> None:
        """Copies the weights of open_clip's pool and resizes its positions to `grid` (h, w)."""
        super().__init__()
        source: Any = deepcopy(pool)
        positions = resize_positions(source.positional_embedding.detach(), grid)
        self.positional_embedding = nn.Parameter(positions)
        self.q_proj: nn.Linear = source.q_proj
        self.k_proj: nn.Linear = source.k_proj
        self.v_proj: nn.Linear = source.v_proj
        self.c_proj: nn.Linear = source.c_proj
        self.num_heads: int = source.num_heads

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) feature maps to (B, E) projected features, not normalized."""
        heads = self.num_heads
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding
        query = self.q_proj(tokens[:, 0]).unflatten(1, (heads, -1))
        key_weight = self.k_proj.weight.unflatten(0, (heads, -1))
        value_weight = self.v_proj.weight.unflatten(0, (heads, -1))
        scores = torch.einsum("bhe,hed,bld->bhl", query, key_weight, tokens)
        # Constant over the tokens, hence without effect; kept so that every parameter of the
        # pool is in the graph, which DDP demands.
        scores = scores + (query * self.k_proj.bias.unflatten(0, (heads, -1))).sum(-1)[..., None]
        attention = (scores / query.shape[-1] ** 0.5).softmax(dim=-1)
        pooled = torch.einsum("bhl,bld->bhd", attention, tokens)
        values = torch.einsum("bhd,hed->bhe", pooled, value_weight).flatten(1)
        return self.c_proj(values + self.v_proj.bias)


@dataclass(frozen=True)
class ResNetParts:
    """A ModifiedResNet image tower in the order in which an image passes it.

    Attributes:
        stem: three conv-bn-relu and an average pool, (B, 3, H, W) -> (B, width, H/4, W/4).
        trunk: layer1..layer4, -> (B, D, H/32, W/32); H/16 with last stride 1.
        attnpool: open_clip's attention pool, -> (B, E).
    """

    stem: nn.Sequential
    trunk: nn.Sequential
    attnpool: nn.Module


def resnet_parts(visual: nn.Module) -> ResNetParts:
    """The pieces of a ModifiedResNet tower, sharing its parameters.

    Raises:
        ValueError: the tower is no ModifiedResNet.
    """
    if not isinstance(visual, ModifiedResNet):
        raise ValueError(
            "this encoder needs CLIP's ModifiedResNet image tower (RN50, RN101, crossreid-small, "
            f"...), but the model has a {type(visual).__name__}; vision transformers serve "
            "text-image retrieval"
        )
    stem_names = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn", "act")] + ["avgpool"]
    layer_names = ["layer1", "layer2", "layer3", "layer4"]
    return ResNetParts(
        stem=nn.Sequential(OrderedDict((n, getattr(visual, n)) for n in stem_names)),
        trunk=nn.Sequential(OrderedDict((n, getattr(visual, n)) for n in layer_names)),
        attnpool=visual.attnpool,
    )


def set_last_stride(trunk: nn.Sequential, stride: int) -> None:
    """Sets the stride of layer4 in place, 1 or 2.

    CLIP strides by average pools: one behind the second convolution of the first block, one in
    front of its shortcut.
    """
    block: Any = trunk.layer4[0]  # type: ignore[index]
    block.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
    block.downsample[0] = nn.AvgPool2d(stride)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resizes learnt positions of a class token and a square grid to another grid.

    Args:
        positions: (1 + s*s, D), class row first.
        grid: (h, w) of the new grid.

    Returns:
        (1 + h*w, D): the class row untouched, the grid bilinear with align_corners False.

    Reference: CCLNet and CSDN, 7x7 -> 18x9; CPCL, 14x14 -> 24x8.
    """
    side = round((len(positions) - 1) ** 0.5)
    assert side * side + 1 == len(positions), "positions of a square grid and a class token"
    square = positions[1:].T.reshape(1, -1, side, side)
    tall = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], tall[0].flatten(1).T])


def position_grid(height: int, width: int, *, stride: int) -> tuple[int, int]:
    """Positions (h, w) that a tower of this total stride makes of an image.

    Raises:
        ValueError: the stride does not divide both sides.
    """
    if height % stride or width % stride:
        raise ValueError(
            f"images of {height} x {width} do not fit: height and width must be multiples of "
            f"{stride}, the stride of this image tower"
        )
    return height // stride, width // stride


def image_tower(visual: nn.Module, *, height: int, width: int) -> nn.Module:
    """A copy of either image tower for images of one size, (B, 3, H, W) -> (B, E).

    Args:
        visual: open_clip's ModifiedResNet, which gets last stride 1, or its VisionTransformer.
        height, width: of the images, in pixels.

    Raises:
        ValueError: a tower of another kind, or a size that its stride does not divide.
    """
    if isinstance(visual, VisionTransformer):
        return _transformer(visual, height=height, width=width)
    grid = position_grid(height, width, stride=16)
    parts = resnet_parts(visual)
    trunk = deepcopy(parts.trunk)
    set_last_stride(trunk, 1)
    return nn.Sequential(
        OrderedDict(
            stem=deepcopy(parts.stem),
            trunk=trunk,
            attnpool=AttentionPool(parts.attnpool, grid=grid),
        )
    )


def _transformer(visual: VisionTransformer, *, height: int, width: int) -> VisionTransformer:
    """A copy with positions for height x width; the class token is read, normalized, projected."""
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.proj is None:
        raise ValueError(
            "this vision transformer does not end with CLIP's own class token and projection; "
            "take ViT-B-16, ViT-B-32, ViT-L-14 or another plain CLIP"
        )
    tower = deepcopy(visual)
    grid = position_grid(height, width, stride=visual.patch_size[0])
    positions = resize_positions(visual.positional_embedding.detach(), grid)
    tower.positional_embedding = nn.Parameter(positions)
    tower.image_size, tower.grid_size = (height, width), grid
    return tower
