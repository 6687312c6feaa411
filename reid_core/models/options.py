"""What an encoder makes of its backbone, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PoolKind = Literal["gem", "class", "mean", "attention"]


@dataclass(frozen=True)
class Options:
    """What an encoder makes of its backbone, whichever method trains it; the keys of `model`.

    Attributes:
        pixels: mean and deviation that images are normalized with: "weights" what the weights were
            trained with, "imagenet" ImageNet's, "half" one half for both; None ImageNet's for
            CLIP's ResNets, as CCLNet and CSDN do, else the weights'.
        pool: None for the family's own: GeM of maps; of tokens the class token, the attention pool
            or the mean, whichever the weights were trained with; DINOv3's class token.
        patch_stride: pixels from one patch to the next, None for the patches' size. 12 of 16 is
            TransReID's.
        stem_blocks: blocks of a transformer, or stages of a Swin, that each modality has of its
            own.
        drop_path: share of the residual branches left out in the last block, rising from 0.
        layer_decay: factor on the learning rate per block, from the last one down.
        freeze_patches: whether the projection of the patches stays as it is.
        lora_rank: rank of the matrices that are learnt beside frozen attention and MLP weights; 0
            trains the weights themselves.
    """

    pixels: Literal["imagenet", "weights", "half"] | None = None
    pool: PoolKind | None = None
    patch_stride: int | None = None
    stem_blocks: int = 0
    drop_path: float = 0.0
    layer_decay: float = 1.0
    freeze_patches: bool = False
    lora_rank: int = 0


PLAIN = Options()
