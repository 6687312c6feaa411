"""Mixed channels and relit rectangles: the definition, slowly, and their distributions."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core import pixels
from reid_core.augmentation import Augmentation
from reid_core.methods.sections import Views
from reid_core.methods.views import augmentations
from reid_core.transforms import TrainTransform

NOTHING = {"flip": 0, "pad": 0, "erase": 0}
SIZES = ((0.02, 0.4), (0.3, 3.33))


def seeds(number: int) -> np.ndarray:
    return np.arange(number, dtype=np.uint64)


def random_images(number: int, height: int = 24, width: int = 16) -> np.ndarray:
    shape = (number, 3, height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_mixture_is_the_weighted_sum_of_the_channels():
    transform = TrainTransform(Augmentation(**NOTHING, mix=0.5))
    images = random_images(40)
    weights = transform.draw(seeds(40), height=24, width=16).weights
    for image, of_channels, result in zip(
        images, weights, transform(images, seeds(40)), strict=True
    ):
        if not of_channels.any():
            assert np.array_equal(result, image)
            continue
        assert of_channels.sum() == pytest.approx(1)
        expected = np.tensordot(of_channels.astype(np.float64), image, axes=1)
        assert np.abs(result - expected).max() < 0.501


def test_weights_of_a_mixture_are_those_of_rle():
    number, rng = 20_000, np.random.default_rng(1)
    weights = TrainTransform(Augmentation(mix=0.5)).draw(seeds(number), height=8, width=8).weights
    mixed = weights[weights.any(axis=1)]
    assert len(mixed) / number == pytest.approx(0.5, abs=0.015)
    theirs = rng.beta(0.3, 0.3, (number, 3))
    theirs /= theirs.sum(axis=1, keepdims=True)
    for share in (0.1, 0.5, 0.9):
        expected = np.quantile(theirs, share, axis=0).mean()
        assert np.quantile(mixed, share, axis=0) == pytest.approx(expected, abs=0.02)


def test_gray_images_have_nothing_to_mix():
    gray = np.broadcast_to(random_images(30)[:, :1], (30, 3, 24, 16))
    assert np.array_equal(TrainTransform(Augmentation(**NOTHING, mix=1))(gray, seeds(30)), gray)


class Stream:
    """Splitmix64 in integers of Python."""

    def __init__(self, state: int) -> None:
        self.state = state

    def number(self) -> float:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        return (((mixed ^ (mixed >> 31)) >> 12) + 0.5) * 2.0**-52

    def beta(self, shape: float) -> float:
        while True:
            x, y = self.number() ** (1 / shape), self.number() ** (1 / shape)
            if x + y <= 1:
                return x / (x + y)


def relit(image: np.ndarray, stream: Stream) -> np.ndarray:
    """RLE's radical enhancement, by its published loop."""
    image, scaled = image.copy(), np.ones(image.shape)
    _, height, width = image.shape
    (least, most), (low, high) = SIZES
    for _ in range(100):
        area = (least + stream.number() * (most - least)) * height * width
        aspect = low + stream.number() * (high - low)
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if not (0 < tall < height and 0 < wide < width):
            continue
        top = int(stream.number() * (height - tall + 1))
        left = int(stream.number() * (width - wide + 1))
        darkest = 1.0
        for channel in range(3):
            place = channel, slice(top, top + tall), slice(left, left + wide)
            alpha, peak = stream.beta(0.4), image[place].max()
            if not peak:
                continue
            by = np.float32(255 * alpha / peak)
            image[place] = np.floor(image[place] * by + np.float32(0.5))
            scaled[place] *= by
            darkest = min(darkest, scaled[place].min())
        if darkest < 0.1:
            break
    return image


def test_relighting_is_rles_loop():
    images, numbers = random_images(60), np.random.default_rng(2).integers(0, 2**63, 60)
    images[:, 2, :12] //= 9
    out = images.copy()
    pixels.relight(out, np.arange(60), numbers.astype(np.uint64), *SIZES)
    for image, number, result in zip(images, numbers.tolist(), out, strict=True):
        assert np.array_equal(result, relit(image, Stream(number)))
    assert (out != images).any(axis=(1, 2, 3)).all()


def test_a_share_of_the_images_is_relit_each_by_its_own_seed():
    transform = TrainTransform(Augmentation(**NOTHING, relight=0.5))
    images = np.full((400, 3, 24, 16), 100, np.uint8)
    result = transform(images, seeds(400))
    changed = (result != images).any(axis=(1, 2, 3))
    assert 0.42 < changed.mean() < 0.58
    order = np.random.default_rng(0).permutation(400)
    assert np.array_equal(transform(images, seeds(400)[order]), result[order])
    assert len(np.unique(result[changed], axis=0)) == changed.sum()


def test_the_light_of_rectangles_is_beta_distributed():
    streams = np.random.default_rng(3).integers(0, 2**63, 4000).astype(np.uint64)
    drawn = [pixels._beta(stream, 0.4)[0] for stream in streams]
    theirs = np.random.default_rng(4).beta(0.4, 0.4, 20_000)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(theirs, share), abs=0.04)


def test_black_images_stay_black_and_end():
    black = np.zeros((5, 3, 24, 16), np.uint8)
    assert not TrainTransform(Augmentation(**NOTHING, relight=1))(black, seeds(5)).any()


def test_one_pixel_has_no_rectangle():
    images = np.full((3, 3, 1, 1), 9, np.uint8)
    assert (TrainTransform(Augmentation(**NOTHING, relight=1))(images, seeds(3)) == 9).all()


def test_every_view_of_a_method_is_relit():
    views = augmentations(Views(visible=2), Augmentation(mix=0.3, relight=0.5))
    assert [(a.mix, a.relight) for each in views.values() for a in each] == [(0.3, 0.5)] * 3
