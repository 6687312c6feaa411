"""Descriptors that are the same for an image and its mirror image."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from reid_core.methods.teacher import MeanTeacher, encoder_state
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.types import Modality


class MirrorMean(nn.Module):
    """An encoder whose descriptors are means of an image's and its mirror image's unit features.

    Attributes:
        flip: that the encoder is asked twice, the second time for the mirror images.
    """

    flip = True

    def __init__(self, encoder: ImageEncoder | MeanTeacher) -> None:
        """Shares the encoder's parameters."""
        super().__init__()
        self.encoder = encoder

    @property
    def feature_dim(self) -> int:
        """D, the width of a descriptor."""
        return self.encoder.feature_dim

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Unit rows (B, D) of (B, 3, H, W) images."""
        both = [self.encoder.embed(x, modality) for x in (inputs, inputs.flip(-1))]
        return functional.normalize(both[0] + both[1], dim=1)

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Unit rows (B, E) in the joint space, means of both images' unit projected features.

        Raises:
            ValueError: see `ImageEncoder.project`.
        """
        one, other = (
            functional.normalize(self.encoder.project(x, modality), dim=1)
            for x in (inputs, inputs.flip(-1))
        )
        return functional.normalize(one + other, dim=1)


def open_encoder(
    backbone: Backbone, height: int, width: int, state: Mapping[str, Tensor] | None, *, flip: bool
) -> ImageEncoder | MirrorMean:
    """The encoder that a stage has trained, in eval mode.

    Args:
        backbone: with the first weights.
        height, width: of its images.
        state: of the stage's module, with or without a teacher; None for the first weights.
        flip: whether its descriptors are those of both mirror images.
    """
    encoder = ImageEncoder(backbone, height=height, width=width)
    if state is not None:
        encoder.load_state_dict(encoder_state(state))
    return (MirrorMean(encoder) if flip else encoder).eval()
