"""The color jitter: torchvision's operations, drawn from the row's own stream."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from reid_core import transforms
from reid_core.augmentation import Augmentation
from reid_core.transforms import TrainTransform

PLAIN = Augmentation(flip=0, pad=0, erase=0)
JITTER = Augmentation(flip=0, pad=0, erase=0, jitter=0.5)


def images(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(num, 3, 12, 6), dtype=np.uint8)


def test_pixels_are_torchvisions() -> None:
    seeds, x = np.arange(40, dtype=np.uint64), images(40)
    jittered = TrainTransform(JITTER)(x, seeds)
    drawn = TrainTransform(JITTER).draw(seeds, height=12, width=6).jitter
    steps = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for i in range(40):
        image = Image.fromarray(x[i].transpose(1, 2, 0))
        for step in transforms._ORDERS[int(drawn[i, 4] * 24)]:
            image = steps[step](image, drawn[i, step])
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), jittered[i])


def test_factors_and_turns_have_their_ranges_and_every_order_occurs() -> None:
    drawn = TrainTransform(JITTER).draw(np.arange(20_000, dtype=np.uint64), height=12, width=6)
    assert drawn.jitter is not None
    for column, (low, high) in enumerate([(0.5, 1.5)] * 3 + [(-0.5, 0.5), (0, 1)]):
        values = drawn.jitter[:, column]
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() < high
        assert abs(values.mean() - (low + high) / 2) < 0.01
    assert len(np.unique((drawn.jitter[:, 4] * 24).astype(int))) == 24


def test_without_jitter_everything_else_is_drawn_as_before() -> None:
    seeds, x = np.arange(50, dtype=np.uint64), images(50)
    options = {"flip": 0.5, "pad": 2, "erase": 0.5, "channels": "exchange"}
    plain = TrainTransform(Augmentation(**options))
    jitter = TrainTransform(Augmentation(**options, jitter=0.5))
    one, other = (t.draw(seeds, height=12, width=6) for t in (plain, jitter))
    assert one.jitter is None
    for name in ("flip", "top", "left", "box", "mixture"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (plain(x, seeds) != jitter(x, seeds)).any()
    np.testing.assert_array_equal(jitter(x, seeds), jitter(x, seeds))
    np.testing.assert_array_equal(TrainTransform(PLAIN)(x, seeds), x)


def test_a_strength_beyond_half_the_circle_is_named() -> None:
    with pytest.raises(ValueError, match=r"jitter.*0\.7"):
        Augmentation(jitter=0.7)
