"""The image encoder of the cross-modality methods: a stem per modality, everything else shared.

Shapes: B images, D trunk channels (2048 for RN50), E joint embedding (1024 for RN50).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.clip import Clip
from reid_core.models.towers import AttentionPool, position_grid, resnet_parts, set_last_stride
from reid_core.transforms import pixel_statistics
from reid_core.types import Modality


@dataclass(frozen=True)
class Features:
    """What one forward pass gives; visible rows first, then infrared ones.

    Attributes:
        pooled: p (B, D), GeM of the last feature map.
        neck: f (B, D), batch-normalized p. f / ||f|| is the descriptor.
        projected: g (B, E), CLIP's attention pool, not normalized: what texts are compared with.
    """

    pooled: Tensor
    neck: Tensor
    projected: Tensor


class GeM(nn.Module):
    """Generalised mean over positions, (mean(x^p))^(1/p).

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
        """(B, D, h, w), not negative, to (B, D) float32."""
        # Cubes overflow half precision.
        powers = maps.float().clamp(min=self._floor).pow(self.p)
        return (powers.mean(dim=(2, 3)) + self._added).pow(1 / self.p)


class TwoStemEncoder(nn.Module):
    """CLIP's ModifiedResNet with one stem per modality.

    In training both modalities pass the trunk as one batch, so its BatchNorm sees the mixture
    while each stem's BatchNorm sees its own modality. Which part learns is the caller's choice,
    by `requires_grad_` on `visible_stem`, `infrared_stem`, `trunk`, `attnpool` and `neck`.

    Images are bytes, normalized here, or floats that are normalized already.

    Attributes:
        pixel_scale, pixel_shift: of `transforms.normalize`.

    Reference: the model of CCLNet; CSDN uses the same towers.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        clip: Clip,
        *,
        height: int,
        width: int,
        last_stride: int = 1,
        stem_relu: Literal["all", "last"] = "all",
        gem: GeM | None = None,
    ) -> None:
        """Copies the image tower of `clip`, which is left as it is.

        Args:
            clip: a CLIP with a ModifiedResNet image tower.
            height, width: of the images, in pixels.
            last_stride: of layer4. CLIP was trained with 2; re-identification takes 1.
            stem_relu: "all" three rectifiers of CLIP's stem, or the "last" alone, which is how
                CSDN's public code rebuilds the stem (its released weights need it).
            gem: pooling of the last map; None for CCLNet's.

        Raises:
            ValueError: another image tower, or a size that the tower's strides do not divide.
        """
        super().__init__()
        parts = resnet_parts(clip.visual)
        grid = position_grid(height, width, stride=16 * last_stride)
        stem = deepcopy(parts.stem)
        if stem_relu == "last":
            del stem.act1, stem.act2
        self.visible_stem = stem
        self.infrared_stem = deepcopy(stem)
        self.trunk = deepcopy(parts.trunk)
        set_last_stride(self.trunk, last_stride)
        self.attnpool = AttentionPool(parts.attnpool, grid=grid)
        self.gem = GeM() if gem is None else gem
        self.neck = nn.BatchNorm1d(self.attnpool.q_proj.in_features)
        self.neck.bias.requires_grad_(False)
        # beside the weights, so that no step copies them to the device
        for name, values in zip(("pixel_scale", "pixel_shift"), pixel_statistics(), strict=True):
            self.register_buffer(name, values, persistent=False)

    @property
    def feature_dim(self) -> int:
        """D, the width of the descriptor."""
        return self.neck.num_features

    @property
    def embed_dim(self) -> int:
        """E, the width of the projected feature."""
        return self.attnpool.c_proj.out_features

    def forward(self, visible: Tensor | None, infrared: Tensor | None) -> Features:
        """Features of one batch of each modality; either may be None, not both.

        Args:
            visible, infrared: (B_m, 3, H, W) images.
        """
        stems = [
            stem(self._normalized(images))
            for stem, images in ((self.visible_stem, visible), (self.infrared_stem, infrared))
            if images is not None
        ]
        maps = self.trunk(torch.cat(stems))
        pooled = self.gem(maps)
        return Features(pooled, self.neck(pooled), self.attnpool(maps))

    def embed(self, images: Tensor, modality: Modality) -> Tensor:
        """Descriptors f / ||f|| (B, D) of images (B, 3, H, W); skips the attention pool."""
        return F.normalize(self.neck(self.gem(self._maps(images, modality))), dim=1)

    def project(self, images: Tensor, modality: Modality) -> Tensor:
        """Projected features g (B, E), not normalized, of images (B, 3, H, W)."""
        return self.attnpool(self._maps(images, modality))

    def _maps(self, images: Tensor, modality: Modality) -> Tensor:
        stem = self.visible_stem if modality == Modality.VISIBLE else self.infrared_stem
        return self.trunk(stem(self._normalized(images)))

    def _normalized(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        return images.float().mul_(self.pixel_scale).sub_(self.pixel_shift)
