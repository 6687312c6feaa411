"""Augmentation: distributions of the papers, rows independent of their batch, exact pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from reid_core.augmentation import Augmentation
from reid_core.methods import METHODS
from reid_core.transforms import (
    _MIXTURES,
    Draws,
    TrainTransform,
    _jittered,
    _mixed,
    decode,
    normalize,
)
from reid_core.types import Modality

NOTHING = Augmentation(grayscale=0, flip=0, pad=0, erase=0)


def seeds(number: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + number, dtype=np.uint64)


def random_images(number: int, height: int = 64, width: int = 32, seed: int = 0) -> np.ndarray:
    shape = (number, 3, height, width)
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_without_augmentation_nothing_changes():
    images = random_images(5)
    assert np.array_equal(TrainTransform(NOTHING)(images, seeds(5)), images)


def test_a_row_depends_on_its_seed_alone():
    transform = TrainTransform(Augmentation(grayscale=0.5, pad=4))
    images, numbers = random_images(40), seeds(40, start=7)
    whole = transform(images, numbers)
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(transform(images[order], numbers[order]), whole[order])
    assert np.array_equal(transform(images[13:14], numbers[13:14]), whole[13:14])
    assert not np.array_equal(transform(images, numbers + np.uint64(1)), whole)
    assert np.array_equal(images, random_images(40))  # inputs are not written to


def test_probabilities_and_ranges_are_the_papers():
    number = 20_000
    draws = TrainTransform(Augmentation(grayscale=0.5)).draw(seeds(number), height=288, width=144)
    tolerance = 4 * 0.5 / number**0.5
    assert draws.gray.mean() == pytest.approx(0.5, abs=tolerance)
    assert draws.flip.mean() == pytest.approx(0.5, abs=tolerance)
    assert np.mean(draws.gray & draws.flip) == pytest.approx(0.25, abs=tolerance)
    for offsets in (draws.top, draws.left):
        counts = np.bincount(offsets, minlength=21)
        assert len(counts) == 21
        assert abs(counts - number / 21).max() < 5 * (number / 21) ** 0.5
    assert abs(np.corrcoef(draws.top, draws.left)[0, 1]) < 0.03


def test_erased_rectangles_have_csdns_areas_and_aspects():
    number, height, width = 20_000, 288, 144
    box = TrainTransform(Augmentation()).draw(seeds(number), height=height, width=width).box
    drawn = box[box[:, 1] > 0]
    assert len(drawn) / number == pytest.approx(0.5, abs=4 * 0.5 / number**0.5)
    tall, wide = drawn[:, 1] - drawn[:, 0], drawn[:, 3] - drawn[:, 2]
    assert (drawn[:, [0, 2]] >= 0).all()
    assert (drawn[:, 1] <= height).all()
    assert (drawn[:, 3] <= width).all()
    share, aspect = tall * wide / (height * width), tall / wide
    assert 0.02 - 2e-3 < share.min() < 0.025
    assert 0.35 < share.max() < 0.4 + 5e-3
    assert 0.3 - 0.02 < aspect.min() < 0.4
    assert 3.2 < aspect.max() < 3.33 + 0.1
    assert share.mean() == pytest.approx(oracle_share(height, width), abs=0.006)


def test_erased_rectangles_lie_anywhere_in_the_image():
    """Given its size, a uniform corner: relative places have mean 1/2 and variance 1/12."""
    box = TrainTransform(Augmentation()).draw(seeds(20_000), height=288, width=144).box
    drawn = box[box[:, 1] > 0]
    for start, stop, length in ((0, 1, 288), (2, 3, 144)):
        free = length - (drawn[:, stop] - drawn[:, start])
        place = (drawn[:, start] / free)[free > 60]
        assert place.mean() == pytest.approx(0.5, abs=4 / (12 * len(place)) ** 0.5)
        assert place.var() == pytest.approx(1 / 12, abs=0.004)


def test_erasing_paints_its_rectangle_and_nothing_else():
    transform = TrainTransform(Augmentation(flip=0, pad=0, erase=1.0))
    images = random_images(50)
    boxes = transform.draw(seeds(50), height=64, width=32).box
    for image, result, (y0, y1, x0, x1) in zip(
        images, transform(images, seeds(50)), boxes, strict=True
    ):
        inside = np.zeros((64, 32), dtype=bool)
        inside[y0:y1, x0:x1] = True
        assert inside.any()
        assert np.array_equal(result[:, ~inside], image[:, ~inside])
        assert (result[:, inside] == [[152], [144], [129]]).all()


def test_an_image_that_no_rectangle_fits_into_stays_whole():
    """Half of the image's area at an aspect of 20 is three times as tall as it: never possible."""
    options = Augmentation(flip=0, pad=0, erase=1.0, erase_area=(0.5, 0.5), erase_aspect=(20, 20))
    assert np.array_equal(TrainTransform(options)(random_images(5), seeds(5)), random_images(5))


def test_the_border_is_black_and_as_wide_as_the_shift():
    transform = TrainTransform(Augmentation(flip=0, pad=6, erase=0))
    draws = transform.draw(seeds(80), height=64, width=32)
    for i, result in enumerate(transform(random_images(80), seeds(80))):
        down, right = draws.top[i] - 6, draws.left[i] - 6
        seen = result[0] > 0  # no pixel of the images is black
        rows, columns = seen.any(axis=1), seen.any(axis=0)
        assert seen.sum() == (64 - abs(down)) * (32 - abs(right))
        assert rows[: max(-down, 0)].sum() == 0
        assert columns[: max(-right, 0)].sum() == 0
    assert (draws.top.min(), draws.top.max()) == (0, 12)


def test_draws_of_neighboring_seeds_are_independent():
    draws = TrainTransform(Augmentation(grayscale=0.5)).draw(seeds(20_000), height=288, width=144)
    for drawn in (draws.gray, draws.flip, draws.top, draws.left, draws.box[:, 1] > 0):
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


def test_methods_give_each_modality_its_published_operations():
    base = Augmentation(grayscale=0.5)
    cclnet, bmil, csdn, cpcl = (
        METHODS[name].augmentations(METHODS[name].config(), base)
        for name in ("cclnet", "bmil", "csdn", "cpcl")
    )
    visible, infrared = Modality.VISIBLE, Modality.INFRARED
    assert [view.grayscale for view in cclnet[visible]] == [0.5]
    assert [view.grayscale for view in cclnet[infrared]] == [0.0]
    assert [(view.channels, view.jitter) for view in bmil[visible]] == [
        ("keep", 0.0),
        ("exchange", 0.5),
    ]
    assert [(view.channels, view.jitter) for view in bmil[infrared]] == [("adapt", 0.0)]
    assert [view.channels for view in csdn[visible]] == ["keep", "exchange"]
    assert [view.channels for view in csdn[infrared]] == ["adapt"]
    assert [(view.grayscale, view.channels) for view in cpcl[visible]] == [(0.0, "keep")]


def oracle_share(height: int, width: int) -> float:
    """Mean erased share by the reference's loop, one image at a time."""
    rng = np.random.default_rng(5)
    shares = []
    while len(shares) < 8_000:
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(0.3, 3.33)
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if tall < height and wide < width:
            shares.append(tall * wide / (height * width))
    return float(np.mean(shares))


def test_pixels_are_those_of_the_slow_obvious_version():
    options = Augmentation(grayscale=0.5, pad=5)
    transform = TrainTransform(options)
    images, numbers = random_images(60), seeds(60)
    draws = transform.draw(numbers, height=64, width=32)
    for i, (image, result) in enumerate(zip(images, transform(images, numbers), strict=True)):
        pixels = Image.fromarray(image.transpose(1, 2, 0))
        if draws.gray[i]:
            pixels = pixels.convert("L").convert("RGB")
        if draws.flip[i]:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        padded = np.pad(np.asarray(pixels), ((5, 5), (5, 5), (0, 0)))
        top, left = draws.top[i], draws.left[i]
        expected = padded[top : top + 64, left : left + 32].copy()
        y0, y1, x0, x1 = draws.box[i]
        expected[y0:y1, x0:x1] = (152, 144, 129)
        assert np.array_equal(result.transpose(1, 2, 0), expected)


def one_step(normalized: torch.Tensor, bytes_: np.ndarray) -> None:
    """Bytes are normalized values, rounded, and clipped where no byte is dark or bright enough."""
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1) * 255
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1) * 255
    expected = (normalized * std + mean).clamp(0, 255)
    assert (expected - torch.from_numpy(bytes_).float()).abs().max() < 0.51


def test_exchanging_writes_one_normalized_channel_into_all_three():
    transform = TrainTransform(Augmentation(pad=3, channels="exchange"))
    before = TrainTransform(Augmentation(pad=3))(random_images(40), seeds(40))
    draws = transform.draw(seeds(40), height=64, width=32)
    assert set(draws.mixture) == {0, 1, 2}
    for i, image in enumerate(transform(random_images(40), seeds(40))):
        chosen = normalize(torch.from_numpy(before[i : i + 1]))[0, draws.mixture[i]]
        one_step(chosen.expand(3, -1, -1), image)
        assert np.array_equal(image[draws.mixture[i]], before[i, draws.mixture[i]])


def test_adapting_also_writes_gray_or_nothing():
    transform = TrainTransform(Augmentation(pad=3, channels="adapt"))
    before = TrainTransform(Augmentation(pad=3))(random_images(60), seeds(60))
    mixture = transform.draw(seeds(60), height=64, width=32).mixture
    weights = torch.tensor([0.2989, 0.5870, 0.1140]).reshape(3, 1, 1)
    for i, image in enumerate(transform(random_images(60), seeds(60))):
        if mixture[i] == -1:
            assert np.array_equal(image, before[i])
        elif mixture[i] == 3:
            normalized = normalize(torch.from_numpy(before[i : i + 1]))[0]
            one_step((weights * normalized).sum(dim=0).expand(3, -1, -1), image)
    assert set(mixture) == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(
    ("channels", "shares"),
    [
        ("keep", (1, 0, 0, 0, 0)),
        ("exchange", (0, 1 / 3, 1 / 3, 1 / 3, 0)),
        ("adapt", (1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8)),
    ],
)
def test_channel_operations_have_the_papers_shares(channels, shares):
    number = 20_000
    draws = TrainTransform(Augmentation(channels=channels)).draw(seeds(number), height=8, width=8)
    result = np.bincount(draws.mixture + 1, minlength=5) / number
    assert result == pytest.approx(shares, abs=4 * 0.5 / number**0.5)


def test_infrared_settings_keep_colors_and_visible_settings_lose_half():
    images = random_images(400, 8, 8)
    plain = TrainTransform(Augmentation(flip=0, pad=0, erase=0))(images, seeds(400))
    assert np.array_equal(plain, images)
    visible = TrainTransform(Augmentation(grayscale=0.5, flip=0, pad=0, erase=0))
    lost = (np.ptp(visible(images, seeds(400)), axis=1) == 0).all(axis=(1, 2))
    assert 0.4 < lost.mean() < 0.6


def test_an_empty_batch_stays_empty():
    assert TrainTransform(Augmentation())(random_images(0), seeds(0)).shape == (0, 3, 64, 32)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flip", 1.5),
        ("mix", 1.1),
        ("relight", -0.1),
        ("pad", -1),
        ("erase_area", (0.5, 0.1)),
        ("erase_aspect", (0.0, 2.0)),
    ],
)
def test_settings_outside_their_range_are_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        Augmentation(**{setting: value})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_decoding_equals_pillow(kind):
    data = encoded(random_images(1)[0].transpose(1, 2, 0), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(data, height=64, width=32), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_is_resized_with_lanczos(kind):
    data = encoded(random_images(1, 50, 20)[0].transpose(1, 2, 0), kind)
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(data, height=64, width=32), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_one_channel_becomes_three_equal_ones(kind):
    image = decode(encoded(random_images(1)[0, 0], kind), height=64, width=32)
    assert image.shape == (3, 64, 32)
    assert (image == image[:1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_broken_data_is_an_error(kind, share):
    data = encoded(random_images(1)[0].transpose(1, 2, 0), kind)
    with pytest.raises(ValueError, match="not a complete image"):
        decode(data[: int(share * len(data))], height=64, width=32)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_gray_keeps_its_upper_eight_bits(kind, order):
    """Thermal cameras: the whole range of the type is black to white, not white from 256 on."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (64, 32)).astype(order)
    pixels[0, :4] = 0, 255, 256, 65535
    image = decode(encoded(pixels, kind), height=64, width=32)
    assert np.array_equal(image, np.broadcast_to(pixels // 256, (3, 64, 32)))
    assert image[0, 0, :4].tolist() == [0, 0, 1, 255]


def test_sixteen_bit_gray_of_another_size_is_resized():
    flat = encoded(np.full((50, 20), 0x8000, dtype=np.uint16), "PNG")
    assert (decode(flat, height=64, width=32) == 128).all()


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_without_a_known_range_are_an_error_that_names_mode_and_remedy(kind, mode):
    with pytest.raises(ValueError, match=rf"mode {mode} .*save the image as 8-bit gray"):
        decode(encoded(random_images(1)[0, 0].astype(kind), "TIFF"), height=64, width=32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_many_pixels_are_the_error_of_a_broken_image(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 32 // 2 - 1)
    with pytest.raises(ValueError, match=r"too many pixels: more than"):
        decode(encoded(random_images(1)[0].transpose(1, 2, 0), kind), height=32, width=16)


def test_normalizing_is_imagenets():
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).repeat(1, 3, 2, 2)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    torch.testing.assert_close(normalize(images), (images.float() / 255 - mean) / std)


def test_the_erasing_color_is_csdns_normalized_color():
    fill = torch.tensor(Augmentation().erase_fill, dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = torch.tensor([0.4914, 0.4822, 0.4465])
    assert (normalize(fill).flatten() - expected).abs().max() < 0.5 / 255 / 0.224


@pytest.mark.parametrize("channels", ["keep", "exchange", "adapt"])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_compiled_loops_write_what_one_image_after_the_other_does(
    channels: str, jitter: float
) -> None:
    options = Augmentation(grayscale=0.5, pad=70, channels=channels, jitter=jitter)
    transform, images, numbers = TrainTransform(options), random_images(12, 24, 40), seeds(150)
    sources = np.arange(150) % 12
    out = np.full((160, 3, 24, 40), 7, np.uint8)
    targets = np.random.default_rng(3).permutation(160)[:150]
    transform.into(out, targets, images, sources, numbers)
    draws = transform.draw(numbers, height=24, width=40)
    for i, target in enumerate(targets):
        np.testing.assert_array_equal(out[target], slowly(images[sources[i]], draws, i, options))
    assert (np.delete(out, targets, axis=0) == 7).all()


def slowly(image: np.ndarray, draws: Draws, i: int, options: Augmentation) -> np.ndarray:
    """The definition, on a padded image."""
    if draws.gray[i]:
        luma = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L")
        image = np.stack([np.asarray(luma)] * 3)
    if draws.flip[i]:
        image = image[:, :, ::-1]
    _, height, width = image.shape
    around = ((0, 0), (options.pad, options.pad), (options.pad, options.pad))
    top, left = draws.top[i], draws.left[i]
    result = np.pad(image, around)[:, top : top + height, left : left + width]
    if draws.jitter is not None:
        result = _jittered(result, draws.jitter[i].tolist())
    y0, y1, x0, x1 = draws.box[i]
    result = result.copy()
    result[:, y0:y1, x0:x1] = np.array(options.erase_fill)[:, None, None]
    mixture = draws.mixture[i]
    return result if mixture == -1 else _mixed(result, _MIXTURES[mixture])
