"""The text-image encoder: a plain CLIP for upright images, fully trainable.

Shapes: B images or captions, E joint embedding (512 for ViT-B/16).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.backbones import Backbone
from reid_core.models.options import PLAIN
from reid_core.models.towers import joint_tower
from reid_core.types import Modality


class TextImageEncoder(nn.Module):
    """CLIP's two towers with the image positions resized; both give unit rows of one space.

    With a vision transformer, 384 x 128 pixels are 24 x 8 patches and the feature is the class
    token behind the final norm and projection. A ModifiedResNet gets last stride 1 and ends in
    its attention pool. A text's feature is read at EOT.

    Attributes:
        visual, text: the towers, copies that share nothing with the CLIP they came from.

    Reconstruction: CPCL's abstract says CLIP; the sizes, and that there is no head, are IRRA's.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, *, height: int, width: int) -> None:
        """Copies both towers of `backbone`, which is left as it is.

        Args:
            backbone: a CLIP with a VisionTransformer or a ModifiedResNet image tower.
            height, width: of the images, in pixels.

        Raises:
            ValueError: another image tower, or a size that its stride does not divide.
        """
        super().__init__()
        if backbone.options != PLAIN:
            raise ValueError(
                "model.pixels, pool, patch_stride, stem_blocks, drop_path, layer_decay, "
                "freeze_patches and lora_rank are of image encoders; text-image retrieval takes "
                "CLIP's towers as they are"
            )
        self.visual = joint_tower(backbone.visual, height=height, width=width)
        self.text = deepcopy(backbone.text)
        self.requires_grad_(True)
        self.pixels = backbone.pixels
        for name in ("mean", "std"):
            values = torch.tensor(getattr(backbone.pixels, name))[:, None, None]
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    @property
    def feature_dim(self) -> int:
        """E, the width of a feature of either kind."""
        return self.text.embed_dim

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to float32 with the mean and deviation that CLIP was trained with."""
        return (images.float() / 255 - self.pixel_mean) / self.pixel_std

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit rows (B, E) of normalized images (B, 3, H, W)."""
        return F.normalize(self.visual(images).float(), dim=1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Unit rows (B, E) of token ids (B, 77), or (B, L) that end with the longest sentence.

        The device is asked for that length only where the host has not cut them (`text.trimmed`).
        """
        is_cut = ids.shape[1] < self.text.context_length
        encode = self.text.encode_trimmed if is_cut else self.text.encode_text
        return F.normalize(encode(ids).float(), dim=1)

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Descriptors: unit rows (B, E).

        Args:
            inputs: (B, 3, H, W) uint8 or normalized float images, or where modality is TEXT
                int64 token ids as `encode_text` takes them.
            modality: of the inputs.

        Raises:
            ValueError: neither VISIBLE nor TEXT.
        """
        if modality == Modality.TEXT:
            return self.encode_text(inputs)
        if modality != Modality.VISIBLE:
            raise ValueError(f"no tower for {modality!r}: only for visible images and text")
        return self.encode_image(self.normalize(inputs) if inputs.dtype == torch.uint8 else inputs)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows (B, E) of normalized images and of trimmed token ids (B, L), for training."""
        return self.encode_image(images), F.normalize(self.text.encode_trimmed(ids).float(), dim=1)
