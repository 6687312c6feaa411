"""What of a configuration does not fit what the weights were trained on, or cannot be known to."""

from __future__ import annotations

from reid_core.models.backbones import Backbone
from reid_core.models.weight_files import Pixels


def of_weights(backbone: Backbone, *, height: int, width: int) -> list[str]:
    """A sentence on each; none where all fits.

    Args:
        backbone: with the options of the encoder.
        height, width: of the images that it will get.
    """
    own, result = backbone.pixels, []
    chosen = backbone.options.pixels
    if backbone.guesses_pixels and chosen is None:
        result.append(
            f"nothing says what the file of model.pretrained was trained with: mean {own.mean} and "
            f"deviation {own.std} are taken, but not all weights of {backbone.name!r} were trained "
            "so; model.pixels=weights keeps them, imagenet (as MAE and DINO) or half changes them"
        )
    elif not backbone.guesses_pixels and not _same(backbone.encoder_pixels, own) and chosen:
        result.append(
            f"model.pixels={chosen}: the weights of {backbone.name!r} were trained with mean "
            f"{own.mean} and deviation {own.std}"
        )
    if own.size is not None and own.size != (height, width):
        result.append(
            f"model.height={height}, width={width}: the weights of {backbone.name!r} were trained "
            f"on images of {own.size[0]} x {own.size[1]}"
        )
    if backbone.twin:
        result.append(
            "nothing says whether the file of model.pretrained was trained with QuickGELU, as "
            f"OpenAI's and MetaCLIP's weights were: if it was, take model.name={backbone.twin}"
        )
    return result


def _same(a: Pixels, b: Pixels) -> bool:
    """Whether both normalize alike, whatever the size of their images."""
    return (a.mean, a.std) == (b.mean, b.std)
