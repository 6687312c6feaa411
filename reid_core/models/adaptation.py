"""How much of a pre-trained encoder learns, and how fast: rates by depth, frozen parts, LoRA.

Shapes: a weight (M, N), its change (M, r) times (r, N).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# "visible_stem.blocks.3.", "trunk.layer2.0.", "trunk.layers.1."
_BLOCK = re.compile(r"^(?:visible_|infrared_)?(stem|trunk)\.(?:blocks|layers?)\.?(\d+)\.")


def set_lr_factors(encoder: nn.Module, decay: float) -> None:
    """Notes on every parameter, as `lr_factor`, the share of the learning rate that it gets.

    The patches (a ResNet's stem) get decay^(L + 1), block i of L, from 0, decay^(L - i), what
    comes behind the last block the whole rate. A ResNet's layers and a Swin's stages count as
    blocks. The optimizers of `reid_core.optim` multiply their rates by it.

    Args:
        encoder: with the parts of `ImageEncoder`; blocks of the stems come before the trunk's.
        decay: of (0, 1]; 1 leaves all rates alike.

    Reference: BEiT, Bao et al., ICLR 2022, and MAE, He et al., CVPR 2022, layer-wise decay.
    """
    if decay == 1:
        return
    blocks: dict[str, int] = {}
    for name, _ in encoder.named_parameters():
        if block := _block(name):
            blocks.setdefault(block, len(blocks))
    for name, parameter in encoder.named_parameters():
        power = len(blocks) + 1 if "_stem." in name else 0
        if block := _block(name):
            power = len(blocks) - blocks[block]
        parameter.lr_factor = decay**power  # type: ignore[attr-defined]


def _block(name: str) -> str | None:
    """The block that a parameter belongs to, the same for both stems; None outside of blocks."""
    match = _BLOCK.match(name)
    return None if match is None else f"{match[1]} {match[2]}"


class LowRank(nn.Module):
    """A weight plus a learnt matrix of low rank: W + B A, W frozen, B zero at first.

    Reference: LoRA, Hu et al., ICLR 2022; its scale alpha / r is 1 here.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, weight.shape[1]), 5**0.5))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """(M, N) to (M, N)."""
        return weight + self.b @ self.a


def add_low_rank(parts: Sequence[nn.Module], rank: int) -> None:
    """Puts a `LowRank` beside every matrix of attention and MLP, in place, and freezes the rest.

    torch's parametrizations do it for Linear and for MultiheadAttention's joint matrix alike.

    Raises:
        ValueError: there is neither attention nor MLP: a convolutional tower; or a rank that a
            matrix does not have.
    """
    for part in parts:
        part.requires_grad_(False)
    places = [
        (layer, "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight")
        for part in parts
        for layer in part.modules()
        if isinstance(layer, (nn.Linear, nn.MultiheadAttention))
    ]
    if not places:
        raise ValueError("model.lora_rank: this image tower has no attention; set it to 0")
    for layer, name in places:
        if rank > min(shape := tuple(getattr(layer, name).shape)):
            raise ValueError(
                f"model.lora_rank={rank}: the matrix that is learnt beside one of {shape[0]} x "
                f"{shape[1]} cannot have a higher rank than {min(shape)}; 4 to 64 are usual"
            )
        parametrize.register_parametrization(
            layer, name, LowRank(getattr(layer, name), rank), unsafe=True
        )


def merge_low_rank(module: nn.Module) -> None:
    """Writes every `LowRank` into its weight, in place: the same outputs from plain layers."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
