"""From image files to network input: decode (`reid_core.images`), augment a batch of bytes,
normalize on the device.

Images stay uint8 until they are on the device. Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from reid_core import pixels
from reid_core.augmentation import Augmentation
from reid_core.images import as_rgb as as_rgb
from reid_core.images import decode as decode

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MAX_TRIES = 100
_AFTER_JITTER = 11 + 4 * _MAX_TRIES  # the first number of a row's stream that nothing else takes
# What all three channels of an image may become: one of them, or gray (the papers' weights).
_KEEP, _GRAY = -1, 3
_MIXTURES = np.vstack([np.eye(3), (0.2989, 0.5870, 0.1140)]).astype(np.float32)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_ORDERS = tuple(permutations(range(4)))  # of those three and the hue
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Draws:
    """One batch's augmentation, a row per image.

    Attributes:
        gray, flip: (B,) bool.
        top, left: (B,) int64, corner of the crop in the padded image, 0..2*pad.
        box: (B, 4) int64, rows [0], [1] and columns [2], [3] of the erased rectangle; empty
            (zeros) where nothing is erased.
        mixture: (B,) int64, what all channels become: 0, 1, 2 one of them, 3 gray, -1 nothing.
        jitter: (B, 5) what `_jittered` takes, or None.
        mixed: (B,) bool, whether all channels become a random mixture of them, or None.
        relit: (B,) bool, whether rectangles are made brighter or darker, or None.
    """

    gray: np.ndarray
    flip: np.ndarray
    top: np.ndarray
    left: np.ndarray
    box: np.ndarray
    mixture: np.ndarray
    jitter: np.ndarray | None
    mixed: np.ndarray | None
    relit: np.ndarray | None


class TrainTransform:
    """Augments batches of uint8 images; a row's result depends on its image and seed alone."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __call__(self, images: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Augments each image with its own seed.

        Args:
            images: (B, 3, H, W) uint8; not changed.
            seeds: (B,) uint64.

        Returns:
            (B, 3, H, W) uint8.
        """
        images = np.ascontiguousarray(images)
        out, rows = np.empty(images.shape, dtype=np.uint8), np.arange(len(images))
        self.into(out, rows, images, rows, seeds)
        return out

    def into(
        self,
        out: np.ndarray,
        targets: np.ndarray,
        images: np.ndarray,
        sources: np.ndarray,
        seeds: np.ndarray,
    ) -> None:
        """Like `__call__`, from rows of one block of images to rows of another.

        Args:
            out: (M, 3, H, W) uint8, C-contiguous.
            targets: (B,) int64 rows of out that are written.
            images: (N, 3, H, W) uint8, C-contiguous; not changed.
            sources: (B,) int64 rows of images, as often as they are wanted.
            seeds: (B,) uint64.
        """
        draws = self.draw(seeds, height=images.shape[2], width=images.shape[3])
        pad = self.augmentation.pad
        down, right = draws.top - pad, draws.left - pad
        pixels.crop(out, targets, images, sources, draws.gray, draws.flip, down, right)
        if draws.jitter is not None:
            for target, drawn in zip(targets, draws.jitter.tolist(), strict=True):
                out[target] = _jittered(out[target], drawn)
        if draws.mixed is not None:
            weights = pixels.mixture_weights(_mix(~seeds[draws.mixed].astype(np.uint64)))
            pixels.mix(out, targets[draws.mixed], weights)
        if draws.relit is not None:
            streams = _mix(_mix(~seeds[draws.relit].astype(np.uint64)))
            sizes = self.augmentation.erase_area, self.augmentation.erase_aspect
            pixels.relight(out, targets[draws.relit], streams, *sizes)
        fill = np.array(self.augmentation.erase_fill, dtype=np.uint8)
        channels = _channel_tables()
        pixels.erase_and_mix(out, targets, draws.box, fill, draws.mixture, channels)
        for target in targets[draws.mixture == _GRAY]:
            out[target] = _mixed(out[target], _MIXTURES[_GRAY])

    def draw(self, seeds: np.ndarray, *, height: int, width: int) -> Draws:
        """The random part of `__call__`: what happens to images of this size."""
        options = self.augmentation
        states = _mix(seeds.astype(np.uint64))
        offsets = 2 * options.pad + 1
        return Draws(
            gray=_uniform(states, 0) < options.grayscale,
            flip=_uniform(states, 1) < options.flip,
            top=(_uniform(states, 2) * offsets).astype(np.int64),
            left=(_uniform(states, 3) * offsets).astype(np.int64),
            box=self._boxes(states, height=height, width=width),
            mixture=self._mixtures(_uniform(states, 5 + 4 * _MAX_TRIES)),
            jitter=self._jitters(states) if options.jitter else None,
            mixed=_chosen(states, _AFTER_JITTER, options.mix),
            relit=_chosen(states, _AFTER_JITTER + 1, options.relight),
        )

    def _jitters(self, states: np.ndarray) -> np.ndarray:
        first, strength = _AFTER_JITTER - 5, self.augmentation.jitter
        drawn = np.stack([_uniform(states, first + i) for i in range(5)], axis=1)
        drawn[:, :4] = strength * (2 * drawn[:, :4] - 1)
        drawn[:, :3] += 1
        return drawn

    def _mixtures(self, drawn: np.ndarray) -> np.ndarray:
        """Reference: CSDN, stage 3, the channel operations of both modalities."""
        if self.augmentation.channels == "keep":
            return np.full(len(drawn), _KEEP)
        if self.augmentation.channels == "exchange":
            return (drawn * 3).astype(np.int64)
        quarter = (drawn * 4).astype(np.int64)
        return np.where(drawn < 0.875, quarter, _KEEP)

    def _boxes(self, states: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Rectangles by rejection: drawn anew, up to 100 times, until one fits into the image."""
        options = self.augmentation
        boxes = np.zeros((len(states), 4), dtype=np.int64)
        (open_rows,) = np.nonzero(_uniform(states, 4) < options.erase)
        for attempt in range(_MAX_TRIES):
            if not len(open_rows):
                break
            area, aspect, at_y, at_x = (
                _uniform(states[open_rows], 5 + 4 * attempt + i) for i in range(4)
            )
            pixels = _between(area, options.erase_area) * height * width
            ratio = _between(aspect, options.erase_aspect)
            tall = np.rint(np.sqrt(pixels * ratio)).astype(np.int64)
            wide = np.rint(np.sqrt(pixels / ratio)).astype(np.int64)
            fits = (tall < height) & (wide < width)
            top = (at_y * (height - tall + 1)).astype(np.int64)
            left = (at_x * (width - wide + 1)).astype(np.int64)
            result = np.stack([top, top + tall, left, left + wide], axis=1)
            boxes[open_rows[fits]] = result[fits]
            open_rows = open_rows[~fits]
        return boxes


def normalize(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32 with ImageNet mean and standard deviation, on its device.

    Reference: CCLNet and CSDN, which take ImageNet's statistics also for CLIP's weights.
    """
    scale, shift = (x.to(images.device) for x in pixel_statistics())
    return images.float().mul_(scale).sub_(shift)


def pixel_statistics(
    mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) of `normalize`: bytes * scale - shift; mean and std are of 1."""
    means, deviations = (torch.tensor(x)[:, None, None] for x in (mean, std))
    return 1 / (255 * deviations), means / deviations


@cache
def _channel_tables() -> np.ndarray:
    """(3, 3, 256) bytes: what a byte becomes where all channels follow from its channel."""
    every = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
    return np.stack([_mixed(every, weights)[:, 0] for weights in _MIXTURES[:_GRAY]])


def _mixed(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(3, H, W) bytes whose normalized channels all equal one mixture of the normalized ones."""
    mean = 255 * np.array(IMAGENET_MEAN, dtype=np.float32)
    std = 255 * np.array(IMAGENET_STD, dtype=np.float32)
    mixture = np.tensordot(weights / std, image, axes=1) - np.dot(weights / std, mean)
    bytes_: np.ndarray = np.rint(mixture * std[:, None, None] + mean[:, None, None])
    return bytes_.clip(0, 255).astype(np.uint8)


def _jittered(image: np.ndarray, drawn: Sequence[float]) -> np.ndarray:
    """(3, H, W) bytes with other brightness, contrast, saturation and hue, by Pillow.

    Reference: torchvision's ColorJitter on Pillow images.
    """
    *factors, turn, order = drawn
    seen = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for step in _ORDERS[int(order * len(_ORDERS))]:
        if step < len(_ENHANCERS):
            seen = _ENHANCERS[step](seen).enhance(factors[step])
        else:
            hue, *others = seen.convert("HSV").split()
            turned = (np.asarray(hue).astype(np.int64) + int(turn * 255)) % 256
            bands = [Image.fromarray(turned.astype(np.uint8)), *others]
            seen = Image.merge("HSV", bands).convert("RGB")
    return np.asarray(seen).transpose(2, 0, 1)


def _between(uniform: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def _chosen(states: np.ndarray, index: int, share: float) -> np.ndarray | None:
    """(B,) bool, a share of the rows, or None where nothing is chosen."""
    return _uniform(states, index) < share if share else None


def _uniform(states: np.ndarray, index: int) -> np.ndarray:
    """The index-th number in [0, 1) of each row's own stream."""
    step = np.uint64((int(_GOLDEN) * index) % 2**64)
    return (_mix(states + step) >> np.uint64(11)) * 2.0**-53


def _mix(states: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a bijection of uint64 that scatters neighbors.

    Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    mixed = states + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
