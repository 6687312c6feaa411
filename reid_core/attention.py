"""The attention of a vision transformer, rolled out from its descriptor to the patches.

Shapes: B images, L tokens (P class and register tokens, then h x w patches).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core.types import Modality


def rolled_out(
    encoder: nn.Module, images: Tensor, modality: Modality, targets: Tensor
) -> Tensor | None:
    """How much each patch speaks for a target, through all blocks; see `attribution.heat_maps`.

    Per block, A is the mean over the heads of relu(gradient x attention), and R <- R + A R from the
    identity on. What the descriptor is made of, the class token, the mean of the patches or an
    attention pool's answer, chooses the row of R.

    Returns:
        (B, h, w), not negative; None of an encoder whose tokens do not all attend to each other.
    """
    caught: list[Tensor] = []
    with torch.enable_grad(), _shown(caught):
        descriptors = encoder.embed(images, modality)  # type: ignore[operator]
        # an encoder that looks at the mirrored image too does so afterwards
        layers = caught[: len(caught) // (2 if getattr(encoder, "flip", False) else 1)]
        if not layers or any(len(x) != len(images) for x in layers):
            return None
        grads = torch.autograd.grad((descriptors * targets.to(descriptors)).sum(), layers)
    steps = [(g * a.detach()).clamp(min=0).mean(dim=1) for g, a in zip(grads, layers, strict=True)]
    blocks = [step for step in steps if step.shape[1] == step.shape[2]]
    itself = torch.eye(blocks[0].shape[1], device=images.device)
    relevance = itself.expand_as(blocks[0])
    for step in blocks:
        relevance = relevance + step @ relevance
    grid, kind = _tokens_of(encoder)
    prefix = relevance.shape[2] - grid[0] * grid[1]
    if len(blocks) < len(steps):  # an attention pool asks once, behind the blocks
        asked = steps[-1].shape[2]  # some ask the patches alone
        rows = (steps[-1] @ relevance[:, -asked:])[:, 0]
    else:
        others = relevance - itself  # that a patch is itself says nothing about it
        rows = others[:, 0] if kind == "class" else others[:, prefix:].mean(dim=1)
    by_place: Tensor = rows[:, prefix:].unflatten(1, grid)
    return by_place.float()


@contextmanager
def _shown(caught: list[Tensor]) -> Iterator[None]:
    """Within the block every attention is computed in the open, and noted (B, heads, L, L).

    Where the parameters are frozen the graph begins with the first of them.
    """

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_options: Any,
    ) -> Tensor:
        scores = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
        if attn_mask is not None:
            scores = scores + attn_mask
        attention = scores.softmax(dim=-1)
        if not attention.requires_grad:
            attention.requires_grad_()
        caught.append(attention)
        return attention @ value

    fast, usual = torch.backends.mha.get_fastpath_enabled(), functional.scaled_dot_product_attention
    torch.backends.mha.set_fastpath_enabled(False)
    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual
        torch.backends.mha.set_fastpath_enabled(fast)


def _tokens_of(encoder: nn.Module) -> tuple[tuple[int, int], str]:
    """The grid of the patches, and which tokens the descriptor is made of."""
    parts: list[Any] = list(encoder.modules())
    grids = [getattr(m, "grid", None) or getattr(m, "grid_size", None) for m in parts]
    kinds = [m.kind for m in parts if isinstance(getattr(m, "kind", None), str)]
    height, width = next(grid for grid in grids if grid is not None)
    return (height, width), kinds[0] if kinds else "class"
