"""What training does to an image, as settings; `reid_core.transforms` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image, in this order; the defaults are CSDN's at 288 x 144.

    Attributes:
        grayscale: probability of losing the colors (visible images only: 0.5 in CCLNet).
        flip: probability of a horizontal flip.
        pad: black pixels added on each side before a random crop back to H x W.
        erase: probability of painting one rectangle over.
        erase_area: smallest and largest share of the image that it covers.
        erase_aspect: smallest and largest height / width of it.
        erase_fill: its color in bytes; CSDN fills with (.4914, .4822, .4465) after normalization,
            which are these pixels, CCLNet with 0, which is (124, 116, 104).
        channels: last of all, on normalized values. "exchange" writes one channel, drawn evenly,
            into all three; "adapt" does so with probability 3/4, and with 1/8 writes a gray
            mixture. Bytes then differ between the channels, because each has a mean and
            deviation of its own; values beyond black or white are clipped.
        jitter: strength of the color jitter before the erasing: brightness, contrast and
            saturation are multiplied by up to 1 +- jitter, the hue turns by up to +- jitter of the
            circle, in random order; 0 for none, 0.5 in the papers.
        mix: probability that, after the jitter and before the erasing, one random mixture of the
            channels is written into all three: a camera of another spectrum. Its weights are three
            numbers from Beta(.3, .3), divided by their sum. 0.5 in RLE.
        relight: probability that, between mixing and erasing, rectangles of `erase_area` and
            `erase_aspect` are made brighter or darker, each channel for itself, until some pixel is
            dark: materials that reflect another spectrum differently. 0.5 in RLE.

    Raises:
        ValueError: a value outside its range.

    Reference: the transforms of CCLNet's and CSDN's code; mix and relight are the moderate and the
    radical part of "RLE: A Unified Perspective of Data Augmentation for Cross-Spectral
    Re-Identification", NeurIPS 2024, and its code. Black rectangles, which it divides by 0, stay.
    """

    grayscale: float = 0.0
    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 3.33)
    erase_fill: tuple[int, int, int] = (152, 144, 129)
    channels: Literal["keep", "exchange", "adapt"] = "keep"
    jitter: float = 0.0
    mix: float = 0.0
    relight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("grayscale", "flip", "erase", "mix", "relight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if self.pad < 0:
            raise ValueError(f"pad is a number of pixels, not {self.pad}")
        if not 0 <= self.jitter <= 0.5:
            raise ValueError(f"jitter is at most 0.5, half of the color circle: {self.jitter}")
        if not 0 < self.erase_area[0] <= self.erase_area[1] <= 1:
            raise ValueError(f"erase_area are rising shares of the image, not {self.erase_area}")
        if not 0 < self.erase_aspect[0] <= self.erase_aspect[1]:
            raise ValueError(f"erase_aspect are rising ratios, not {self.erase_aspect}")
        if not all(0 <= byte <= 255 for byte in self.erase_fill):
            raise ValueError(f"erase_fill are three bytes, 0 to 255, not {self.erase_fill}")
