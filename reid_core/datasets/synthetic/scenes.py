"""Places behind the identities: walls, doors, windows, shelves, kerbs, trees.

A place is a list of shapes in fractions of the scene (x right, y down). Each shape has a color
and an infrared brightness: foliage is bright and glass is dark there.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

# Places are out of focus: their contrast around mid-gray is this share of what is painted below.
# At 1, an encoder that has only seen plain backdrops matches places rather than identities.
_CONTRAST, _MIDDLE = 0.7, 0.45

Shape = tuple[tuple[int, int, int], int, tuple[float, ...]]
# (color, infrared, (x0, y0, x1, y1)): a rectangle; eight numbers: a quadrilateral.

_HALL: tuple[Shape, ...] = (
    ((196, 188, 172), 150, (0, 0, 1, 0.72)),
    ((150, 140, 128), 110, (0, 0.72, 1, 1)),
    ((120, 84, 56), 90, (0.08, 0.16, 0.3, 0.72)),
    ((92, 62, 40), 60, (0.11, 0.2, 0.27, 0.4)),
    ((206, 214, 220), 60, (0.5, 0.1, 0.72, 0.42)),
    ((122, 150, 176), 40, (0.52, 0.12, 0.7, 0.4)),
    ((112, 104, 96), 80, (0, 0.7, 1, 0.735)),
    ((70, 110, 70), 190, (0.84, 0.45, 0.93, 0.7)),
    ((128, 118, 106), 96, (0, 0.86, 1, 0.872)),
)
_CORRIDOR: tuple[Shape, ...] = (
    ((170, 184, 180), 128, (0, 0, 1, 0.68)),
    ((122, 130, 132), 92, (0, 0.68, 1, 1)),
    ((140, 156, 152), 104, (0, 0.4, 1, 0.68)),
    ((84, 96, 112), 66, (0.2, 0.12, 0.36, 0.68)),
    ((84, 96, 112), 66, (0.62, 0.12, 0.78, 0.68)),
    ((196, 60, 48), 150, (0.46, 0.3, 0.52, 0.44)),
    ((230, 232, 226), 200, (0, 0.02, 1, 0.05)),
    ((98, 104, 108), 70, (0.4, 0.68, 0.48, 0.68, 0.38, 1, 0.2, 1)),
)
_LAB: tuple[Shape, ...] = (
    ((204, 206, 210), 160, (0, 0, 1, 0.6)),
    ((168, 164, 156), 120, (0, 0.6, 1, 1)),
    ((132, 112, 88), 88, (0.02, 0.1, 0.26, 0.66)),
    ((176, 60, 56), 140, (0.04, 0.14, 0.1, 0.28)),
    ((54, 90, 150), 60, (0.12, 0.14, 0.18, 0.28)),
    ((222, 190, 70), 170, (0.06, 0.34, 0.2, 0.46)),
    ((88, 88, 92), 70, (0.66, 0.44, 0.98, 0.5)),
    ((88, 88, 92), 70, (0.7, 0.5, 0.73, 0.78)),
    ((46, 50, 56), 40, (0.76, 0.26, 0.92, 0.42)),
)
_STREET: tuple[Shape, ...] = (
    ((150, 134, 124), 120, (0, 0, 1, 0.58)),
    ((126, 126, 128), 84, (0, 0.58, 1, 1)),
    ((168, 166, 160), 120, (0, 0.58, 1, 0.72)),
    ((206, 204, 196), 160, (0, 0.72, 1, 0.745)),
    ((92, 108, 124), 46, (0.1, 0.08, 0.28, 0.34)),
    ((92, 108, 124), 46, (0.38, 0.08, 0.56, 0.34)),
    ((92, 108, 124), 46, (0.66, 0.08, 0.84, 0.34)),
    ((118, 98, 88), 96, (0, 0.42, 1, 0.45)),
    ((58, 62, 60), 60, (0.9, 0.0, 0.925, 0.7)),
    ((222, 222, 214), 170, (0.2, 0.88, 0.36, 0.91)),
    ((222, 222, 214), 170, (0.6, 0.88, 0.76, 0.91)),
)
_PARK: tuple[Shape, ...] = (
    ((176, 200, 224), 100, (0, 0, 1, 0.4)),
    ((84, 120, 72), 205, (0, 0.3, 1, 0.64)),
    ((58, 96, 56), 180, (0.06, 0.06, 0.3, 0.4)),
    ((66, 106, 60), 190, (0.58, 0.02, 0.88, 0.42)),
    ((88, 68, 50), 80, (0.16, 0.38, 0.2, 0.6)),
    ((88, 68, 50), 80, (0.71, 0.4, 0.75, 0.62)),
    ((176, 160, 130), 130, (0, 0.64, 1, 1)),
    ((150, 136, 110), 112, (0, 0.64, 1, 0.66)),
    ((110, 82, 54), 88, (0.36, 0.54, 0.54, 0.575)),
)
_GATE: tuple[Shape, ...] = (
    ((120, 110, 120), 96, (0, 0, 1, 0.5)),
    ((96, 98, 92), 100, (0, 0.5, 1, 1)),
    ((76, 104, 60), 196, (0, 0.36, 1, 0.56)),
    ((52, 54, 58), 50, (0.12, 0.04, 0.17, 0.6)),
    ((52, 54, 58), 50, (0.83, 0.04, 0.88, 0.6)),
    ((52, 54, 58), 50, (0.12, 0.04, 0.88, 0.075)),
    ((146, 146, 140), 128, (0.3, 0.56, 0.7, 0.56, 1.0, 1, 0.0, 1)),
)
PLACES = {
    "hall": _HALL,
    "corridor": _CORRIDOR,
    "lab": _LAB,
    "street": _STREET,
    "park": _PARK,
    "gate": _GATE,
}


@lru_cache(maxsize=32)
def scene(place: str, height: int, width: int, *, infrared: bool) -> np.ndarray:
    """One place as an image larger than any crop of it.

    Args:
        place: one of PLACES.
        height, width: in canvas pixels.
        infrared: brightness instead of color.

    Returns:
        (height, width, 3) or, in infrared, (height, width, 1) float32, 0 to 1; read-only.
    """
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for color, brightness, shape in PLACES[place]:
        corners = _corners(shape)
        fill = (brightness, brightness, brightness) if infrared else color
        draw.polygon([(x * width, y * height) for x, y in corners], fill=fill)
    pixels = np.asarray(image, dtype=np.float32) / 255.0
    # The grain of walls and ground: always the same, as a real wall is.
    grain = np.random.default_rng(len(place)).normal(1.0, 0.05, (height // 2, width // 2, 1))
    grain = grain.repeat(2, axis=0).repeat(2, axis=1).astype(np.float32)
    pixels = pixels[: grain.shape[0], : grain.shape[1], : 1 if infrared else 3] * grain
    pixels = np.float32(_MIDDLE) + np.float32(_CONTRAST) * (pixels - np.float32(_MIDDLE))
    pixels.flags.writeable = False
    return pixels


def _corners(shape: tuple[float, ...]) -> list[tuple[float, float]]:
    if len(shape) == 4:
        x0, y0, x1, y1 = shape
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return list(zip(shape[::2], shape[1::2], strict=True))
