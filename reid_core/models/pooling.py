"""What turns the last features of an image tower into one row: of maps, of tokens, of CLIP's own.

Shapes: B images, D trunk channels, E joint embedding, h x w positions, P tokens in front of them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.options import PoolKind


class GeM(nn.Module):
    """Generalized mean over positions, (mean(x^p))^(1/p).

    Attributes:
        p: the exponent; where it learns, a parameter of shape (1,).

    Reference: CCLNet, p = 3 fixed, with 1e-12 added to the mean; CSDN, p learnt from 3 on, with
    x clamped at 1e-6 instead, because the gradient of 0^p with respect to p does not exist.
    """

    def __init__(self, *, p: float = 3.0, learnable: bool = False) -> None:
        super().__init__()
        self.p: nn.Parameter | float = nn.Parameter(torch.tensor([p])) if learnable else p
        self._floor, self._added = (1e-6, 0.0) if learnable else (0.0, 1e-12)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, h, w), what is negative counting as nothing, to (B, D) float32."""
        # Cubes overflow half precision.
        powers = maps.float().clamp(min=self._floor).pow(self.p)
        return (powers.mean(dim=(2, 3)) + self._added).pow(1 / self.p)


class TokenPool(nn.Module):
    """One row of a transformer's tokens: the class token, the patches' mean, GeM, or attention."""

    def __init__(
        self,
        kind: PoolKind,
        *,
        left_out: int,
        norm: nn.Module,
        attention: nn.Module | None = None,
    ) -> None:
        """Chooses the row.

        Args:
            kind: which row.
            left_out: of the class and register tokens in front of the patches, how many none but
                the class token's row is made of.
            norm: of the pooled row, where the tower has its last norm there; else the identity.
            attention: the tower's own attention pool, None where it has none.

        Raises:
            ValueError: the tower has no such pool.
        """
        super().__init__()
        if kind == "attention" and attention is None:
            raise ValueError(
                "model.pool=attention: this image tower has no attention pool; take class, mean "
                "or gem"
            )
        self.kind, self.left_out, self.norm = kind, left_out, norm
        self.attention = attention if kind == "attention" else None
        self.gem = GeM()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P + h w, D) to (B, D) float32."""
        patches = tokens[:, self.left_out :]
        if self.attention is not None:
            pooled = self.attention(patches)
        elif self.kind == "class":
            pooled = tokens[:, 0]
        elif self.kind == "mean":
            pooled = patches.mean(dim=1)
        else:
            pooled = self.gem(patches.transpose(1, 2)[..., None])
        normalized: Tensor = self.norm(pooled)
        return normalized.float()


class ClassProjection(nn.Module):
    """CLIP's way from a transformer's tokens to the joint space: the class token, projected."""

    def __init__(self, weight: Tensor) -> None:
        """Copies the projection (D, E)."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    @property
    def out_features(self) -> int:
        """E."""
        return self.weight.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P + h w, D) to (B, E), not normalized."""
        return tokens[:, 0] @ self.weight


class AttentionPool(nn.Module):
    """The attention pool of CLIP's ResNets for a grid of any shape; computes the class token alone.

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

    @property
    def out_features(self) -> int:
        """E."""
        return self.c_proj.out_features

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
        projected: Tensor = self.c_proj(values + self.v_proj.bias)
        return projected


Projection = AttentionPool | ClassProjection
"""CLIP's way from the last features to its joint space."""


def resize_positions(
    positions: Tensor,
    grid: tuple[int, int],
    *,
    prefix: int = 1,
    source: tuple[int, int] | None = None,
) -> Tensor:
    """Resizes learnt positions to another grid.

    Args:
        positions: (prefix + s, D), those of class and register tokens first.
        grid: (h, w) of the new grid.
        prefix: rows that stay as they are.
        source: (h, w) of the old grid; None for a square one.

    Returns:
        (prefix + h*w, D): the first rows untouched, the grid bilinear with align_corners False.

    Reference: CCLNet and CSDN, 7x7 -> 18x9; CPCL, 14x14 -> 24x8.
    """
    side = round((len(positions) - prefix) ** 0.5)
    source = source or (side, side)
    assert source[0] * source[1] + prefix == len(positions), "positions of one grid"
    if source == grid:
        return positions.clone()
    old = positions[prefix:].T.reshape(1, -1, *source)
    new = F.interpolate(old, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:prefix], new[0].flatten(1).T])
