"""The image encoder of the cross-modality methods: a stem per modality, everything else shared.

Shapes: B images, D trunk channels (2048 for RN50, 768 for ViT-B), E joint embedding.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.adaptation import add_low_rank, set_lr_factors
from reid_core.models.backbones import Backbone
from reid_core.models.patches import patch_projection
from reid_core.models.pooling import Projection, TokenPool
from reid_core.models.towers import Fit, open_tower
from reid_core.transforms import pixel_statistics
from reid_core.types import Modality


@dataclass(frozen=True)
class Features:
    """What one forward pass gives; visible rows first, then infrared ones.

    Attributes:
        pooled: p (B, D), one row of the last features.
        neck: f (B, D), batch-normalized p. f / ||f|| is the descriptor.
        projected: g (B, E), not normalized: what texts are compared with; (B, 0) where there is no
            joint space, or where `leave_projection` left it out.
    """

    pooled: Tensor
    neck: Tensor
    projected: Tensor


class ImageEncoder(nn.Module):
    """An image tower with one stem per modality.

    In training both modalities pass the trunk as one batch, so its BatchNorm sees the mixture
    while each stem's BatchNorm sees its own modality. Which part learns is the caller's choice,
    by `requires_grad_` on `visible_stem`, `infrared_stem`, `trunk`, `gem` and `neck`.

    The parts are called as in CLIP's ResNet, the first family, since checkpoints hold these names:
    `gem` is what pools, `attnpool` what leads to the joint space, of whichever family.

    Images are bytes, normalized here, or floats that are normalized already.

    Attributes:
        pixels: what bytes are normalized with.

    Reference: the model of CCLNet, with a ResNet; CSDN uses the same towers.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        height: int,
        width: int,
        last_stride: int = 1,
        stem_relu: Literal["all", "last"] = "all",
        learnable_gem: bool = False,
    ) -> None:
        """Copies the image tower of `backbone`, which is left as it is, and follows its options.

        Args:
            backbone: with any image tower that `open_tower` knows.
            height, width: of the images, in pixels.
            last_stride, stem_relu, learnable_gem: see `Fit`.

        Raises:
            ValueError: another image tower, or an option or a size that does not fit it.
        """
        super().__init__()
        options, self.pixels = backbone.options, backbone.encoder_pixels
        fit = Fit(height, width, options, last_stride, stem_relu, learnable_gem)
        tower = open_tower(backbone.visual, fit)
        self._projects = backbone.text_tower is not None and tower.projection is not None
        self._frozen: list[nn.Parameter] = []
        self.visible_stem = tower.stem
        self.infrared_stem = deepcopy(tower.stem)
        self.trunk = tower.trunk
        self.attnpool: Projection | None = tower.projection if self._projects else None
        self.gem = tower.pool
        self.neck = nn.BatchNorm1d(tower.dim)
        # beside the weights, so that no step copies them to the device
        scale, shift = pixel_statistics(self.pixels.mean, self.pixels.std)
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        if options.lora_rank:
            parts = [self.visible_stem, self.infrared_stem, self.trunk]
            parts += [self.gem] if isinstance(self.gem, TokenPool) else []
            add_low_rank(parts, options.lora_rank)
        if options.freeze_patches:
            for stem in (self.visible_stem, self.infrared_stem):
                patch_projection(stem).requires_grad_(False)
        self._frozen = [p for p in self.parameters() if not p.requires_grad]
        self.neck.bias.requires_grad_(False)
        set_lr_factors(self, options.layer_decay)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `nn.Module`'s, but what the options freeze stays frozen."""
        super().requires_grad_(requires_grad)
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self

    @property
    def feature_dim(self) -> int:
        """D, the width of the descriptor."""
        return self.neck.num_features

    @property
    def embed_dim(self) -> int:
        """E, the width of the projected feature.

        Raises:
            ValueError: no text tower shares a space with these images.
        """
        return self._joint().out_features

    def leave_projection(self) -> None:
        """Freezes what leads to the joint space and leaves it out of the forward pass."""
        if self.attnpool is not None:
            self.attnpool.requires_grad_(False)
        self._projects = False

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
        last = self.trunk(torch.cat(stems))
        pooled = self.gem(last)
        projected = self._joint()(last) if self._projects else pooled[:, :0]
        return Features(pooled, self.neck(pooled), projected)

    def embed(self, images: Tensor, modality: Modality) -> Tensor:
        """Descriptors f / ||f|| (B, D) of images (B, 3, H, W); skips the projection."""
        return F.normalize(self.neck(self.gem(self._last(images, modality))), dim=1)

    def project(self, images: Tensor, modality: Modality) -> Tensor:
        """Projected features g (B, E), not normalized, of images (B, 3, H, W).

        Raises:
            ValueError: no text tower shares a space with these images.
        """
        projected: Tensor = self._joint()(self._last(images, modality))
        return projected

    def _joint(self) -> Projection:
        if self.attnpool is None:
            raise ValueError(
                "this image tower has no text tower beside it, so there is no space in which "
                "images and sentences can be compared; take a CLIP such as RN50 or ViT-B-16"
            )
        return self.attnpool

    def _last(self, images: Tensor, modality: Modality) -> Tensor:
        stems = {Modality.VISIBLE: self.visible_stem, Modality.INFRARED: self.infrared_stem}
        if modality not in stems:
            raise ValueError(
                f"this encoder has no stem for {modality!r}, only for visible and infrared images"
            )
        last: Tensor = self.trunk(stems[modality](self._normalized(images)))
        return last

    def _normalized(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        # turned while they are bytes: convolutions take channels last
        images = images.contiguous(memory_format=torch.channels_last)
        return images.float().mul_(self.pixel_scale).sub_(self.pixel_shift)
