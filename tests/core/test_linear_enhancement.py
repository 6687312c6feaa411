"""Mixed channels and relit rectangles: the definition, slowly, and their distributions."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core import pixels
from reid_core.augmentation import Augmentation
from reid_core.methods import METHODS
from reid_core.transforms import _MIXTURES, TrainTransform, _mix, _mixed

NOTHING = {"flip": 0, "pad": 0, "erase": 0}
SIZES = ((0.02, 0.4), (0.3, 3.33))


def seeds(number: int) -> np.ndarray:
    return np.arange(number, dtype=np.uint64)


def random_images(number: int, height: int = 24, width: int = 16) -> np.ndarray:
    shape = (number, 3, height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def streams(numbers: np.ndarray, times: int) -> np.ndarray:
    """Of the mixture (1) and of the light (2) of images with these seeds."""
    result = ~numbers
    for _ in range(times):
        result = _mix(result)
    return result


def test_weights_of_a_mixture_are_those_of_rle():
    number, rng = 200_000, np.random.default_rng(1)
    mixed = TrainTransform(Augmentation(mix=0.5)).draw(seeds(number), height=8, width=8).mixed
    assert mixed.mean() == pytest.approx(0.5, abs=0.005)
    weights = pixels.mixture_weights(streams(seeds(number), 1))
    assert weights.sum(axis=1) == pytest.approx(1)
    theirs = rng.beta(0.3, 0.3, (number, 3))
    theirs /= theirs.sum(axis=1, keepdims=True)
    for share in (0.1, 0.5, 0.9):
        expected = np.quantile(theirs, share, axis=0).mean()
        assert np.quantile(weights, share, axis=0) == pytest.approx(expected, abs=0.02)


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
    """RLE's radical enhancement by its published loop, whose images are not rounded meanwhile."""
    image, scaled = image.astype(np.float64), np.ones(image.shape)
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
        for channel in range(3):
            place = channel, slice(top, top + tall), slice(left, left + wide)
            alpha, peak = stream.beta(0.4), image[place].max()
            if peak > 0:
                image[place] *= 255 * alpha / peak
                scaled[place] *= 255 * alpha / peak
        if scaled.min() < 0.1:
            break
    return image


@pytest.mark.parametrize("brightest", [255, 12])
def test_relighting_is_rles_loop(brightest):
    images, numbers = random_images(60), np.random.default_rng(2).integers(0, 2**63, 60)
    images = (images.astype(np.float64) * brightest / 255).astype(np.uint8)
    images[:, 2, :12] //= 9
    out = images.copy()
    pixels.relight(out, np.arange(60), numbers.astype(np.uint64), *SIZES)
    for image, number, result in zip(images, numbers.tolist(), out, strict=True):
        assert np.abs(result - relit(image, Stream(number))).max() < 0.51
    assert (out != images).any(axis=(1, 2, 3)).all()


def test_both_come_after_the_jitter_and_before_the_erasing_and_the_channels():
    before = {"grayscale": 0.3, "flip": 0.5, "pad": 5, "jitter": 0.3}
    sizes = {"erase_area": SIZES[0], "erase_aspect": SIZES[1]}
    whole = Augmentation(**before, **sizes, channels="adapt", mix=0.5, relight=0.5)
    images, numbers = random_images(12), seeds(90)
    sources, targets = np.arange(90) % 12, np.random.default_rng(3).permutation(100)[:90]
    out = np.full((100, 3, 24, 16), 7, np.uint8)
    TrainTransform(whole).into(out, targets, images, sources, numbers)
    draws = TrainTransform(whole).draw(numbers, height=24, width=16)
    expected = TrainTransform(Augmentation(**before, erase=0))(images[sources], numbers)
    of_channels = pixels.mixture_weights(streams(numbers, 1))
    lights = streams(numbers, 2)
    fill = np.array(whole.erase_fill)[:, None, None]
    for i, image in enumerate(expected):
        if draws.mixed[i]:
            image[:] = np.rint(np.tensordot(of_channels[i].astype(np.float64), image, axes=1))
        if draws.relit[i]:
            image[:] = np.rint(relit(image, Stream(int(lights[i]))))
        y0, y1, x0, x1 = draws.box[i]
        image[:, y0:y1, x0:x1] = fill
        if draws.mixture[i] >= 0:
            image[:] = _mixed(image, _MIXTURES[draws.mixture[i]])
        # a byte on the border of two may be rounded the other way, and then stretched
        assert np.abs(out[targets[i]].astype(int) - image).max() <= 3, i
    assert 0 < (draws.mixed & draws.relit).sum() < len(numbers)
    assert (np.delete(out, targets, axis=0) == 7).all()


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


@pytest.mark.parametrize(
    ("method", "more"),
    [("cclnet", {}), ("cclnet", {"views": {"visible": 2}}), ("bmil", {}), ("csdn", {})],
)
def test_every_view_of_a_method_is_mixed_and_relit(method, more):
    settings = METHODS[method].config(**more)
    views = METHODS[method].augmentations(settings, Augmentation(mix=0.3, relight=0.5))
    assert {(a.mix, a.relight) for each in views.values() for a in each} == {(0.3, 0.5)}


def test_captions_name_colors_which_therefore_stay():
    cpcl = METHODS["cpcl"]
    views = cpcl.augmentations(cpcl.config(), Augmentation(mix=0.3, relight=0.5))
    assert {(a.mix, a.relight) for each in views.values() for a in each} == {(0, 0)}
