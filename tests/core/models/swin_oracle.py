"""SOLIDER's Swin from the names of its files, slowly: no rolls, no masks, no batches of windows.

A shifted block pads a map to whole windows, and a window never spans the border that it wraps
around: what attends to each other are the rectangles between rows and columns cut at 0, 3, 10, ...
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 7
EPSILON = 1e-5


def solider_features(
    state: dict[str, Tensor], images: Tensor, *, semantic_weight: float = 0.2
) -> Tensor:
    """Normalized images (1, 3, H, W) to the last maps (h, w, C) behind their norm.

    Args:
        state: SOLIDER's names.
        images: whose sides are multiples of 32.
        semantic_weight: of its controller; its authors take 0.2.
    """
    mixture = torch.tensor([semantic_weight, 1 - semantic_weight])
    x = F.conv2d(
        images,
        state["patch_embed.projection.weight"],
        state["patch_embed.projection.bias"],
        stride=4,
    )
    x = _norm(state, "patch_embed.norm", x[0].permute(1, 2, 0))
    for stage in range(4):
        blocks = {k.split(".")[3] for k in state if k.startswith(f"stages.{stage}.blocks.")}
        for number in range(len(blocks)):
            x = _block(
                state, f"stages.{stage}.blocks.{number}", x, shift=WINDOW // 2 * (number % 2)
            )
        if stage < 3:
            at = f"stages.{stage}.downsample"
            # channel by channel its four places, row by row
            places = torch.stack([x[i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1).flatten(2)
            x = _norm(state, f"{at}.norm", places) @ state[f"{at}.reduction.weight"].T
            scale, shift = (
                state[f"semantic_embed_{kind}.{stage}.weight"] @ mixture
                + state[f"semantic_embed_{kind}.{stage}.bias"]
                for kind in "wb"
            )
            x = x * F.softplus(scale) + shift
    return _norm(state, "norm3", x)


def _norm(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{at}.weight"], state[f"{at}.bias"], EPSILON)


def _linear(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    return x @ state[f"{at}.weight"].T + state[f"{at}.bias"]


def _block(state: dict[str, Tensor], at: str, x: Tensor, *, shift: int) -> Tensor:
    x = x + _window_attention(state, f"{at}.attn.w_msa", _norm(state, f"{at}.norm1", x), shift)
    wide = F.gelu(_linear(state, f"{at}.ffn.layers.0.0", _norm(state, f"{at}.norm2", x)))
    return x + _linear(state, f"{at}.ffn.layers.1", wide)


def _window_attention(state: dict[str, Tensor], at: str, x: Tensor, shift: int) -> Tensor:
    """(H, W, C) to the same: whoever shares a rectangle attends to each other."""
    sides = [-(-side // WINDOW) * WINDOW for side in x.shape[:2]]
    padded = torch.zeros(*sides, x.shape[2])
    padded[: x.shape[0], : x.shape[1]] = x
    result = torch.empty_like(padded)
    rows, columns = (sorted({0, side, *range(shift, side, WINDOW)}) for side in sides)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            piece = padded[top:bottom, left:right]
            mixed = _attention(state, at, piece.flatten(0, 1), bottom - top, right - left)
            result[top:bottom, left:right] = mixed.view_as(piece)
    return result[: x.shape[0], : x.shape[1]]


def _attention(state: dict[str, Tensor], at: str, x: Tensor, height: int, width: int) -> Tensor:
    """(height * width, C) rows to the same, with what their places in the rectangle add."""
    table = state[f"{at}.relative_position_bias_table"]
    y, z = (
        t.flatten()
        for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    down, across = y[:, None] - y + WINDOW - 1, z[:, None] - z + WINDOW - 1
    query, key, value = _linear(state, f"{at}.qkv", x).chunk(3, dim=1)
    heads = []
    for head, (q, k, v) in enumerate(
        zip(*(part.chunk(table.shape[1], dim=1) for part in (query, key, value)), strict=True)
    ):
        scores = q @ k.T / q.shape[1] ** 0.5 + table[down * (2 * WINDOW - 1) + across, head]
        heads.append(scores.softmax(dim=1) @ v)
    return _linear(state, f"{at}.proj", torch.cat(heads, dim=1))
