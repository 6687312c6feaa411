"""The canvas an identity is drawn on: codes for material and shade, not colors.

A pixel's code is ``material * SHADES + shade``. Colors (or infrared reflectances) come later from
a table with one entry per code, so that both modalities share this geometry exactly.

Body units: y runs from 0 (crown) to 1 (soles), x from the body's axis, both in body heights.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from PIL import Image, ImageDraw

SHADES = 8
NORMAL = 5  # shade of a surface in plain light; 7 is a highlight, 0 the deepest fold
FAR = 3  # shade of the limbs on the far side
OVERSAMPLE = 2  # canvas pixels per image pixel, along each axis

Point = tuple[float, float]


class Material(IntEnum):
    """What a pixel shows. A second color follows its first: a pattern adds one to the material."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    HAT = 3
    UPPER = 4
    UPPER_SECOND = 5
    LOWER = 6
    LOWER_SECOND = 7
    INNER = 8
    SHOES = 9
    SOLE = 10
    BAG = 11
    OCCLUDER = 12
    SHADOW = 13


NUM_CODES = len(Material) * SHADES


class Canvas:
    """A label image with a body's coordinate system.

    Args:
        shape: (height, width) in canvas pixels.
        top, axis: canvas row of the crown and canvas column of the body's axis.
        scale: canvas pixels per body height.
        sign: -1 mirrors left and right.
    """

    def __init__(
        self, shape: tuple[int, int], *, top: float, axis: float, scale: float, sign: int
    ) -> None:
        self.image = Image.new("L", (shape[1], shape[0]), 0)
        self.draw = ImageDraw.Draw(self.image)
        self.top, self.axis, self.scale, self.sign = top, axis, scale, sign

    def _place(self, point: Point) -> Point:
        x = self.axis + self.sign * point[0] * self.scale
        return (x, self.top + point[1] * self.scale)

    def polygon(self, points: Sequence[Point], material: Material, shade: int = NORMAL) -> None:
        """A filled polygon with a contour two shades deeper, which separates arm from body."""
        code = material * SHADES + shade
        self.draw.polygon([self._place(p) for p in points], fill=code, outline=code - 2)

    def line(self, a: Point, b: Point, material: Material, shade: int, *, pixels: int) -> None:
        """A straight line of the given width in canvas pixels."""
        code = material * SHADES + shade
        self.draw.line([self._place(a), self._place(b)], fill=code, width=pixels)

    def disc(self, center: Point, radius: Point, material: Material, shade: int = NORMAL) -> None:
        """A filled ellipse."""
        x, y = self._place(center)
        rx, ry = radius[0] * self.scale, radius[1] * self.scale
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=material * SHADES + shade)

    def limb(
        self, a: Point, b: Point, width: Point, material: Material, shade: int = NORMAL
    ) -> None:
        """A tapered bar from a to b; width holds its half widths at both ends."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        norm = float(np.hypot(dx, dy)) or 1.0
        nx, ny = -dy / norm, dx / norm
        (wa, wb) = width
        corners = (
            (a[0] + nx * wa, a[1] + ny * wa),
            (b[0] + nx * wb, b[1] + ny * wb),
            (b[0] - nx * wb, b[1] - ny * wb),
            (a[0] - nx * wa, a[1] - ny * wa),
        )
        self.polygon(corners, material, shade)

    def box(self, x: Point, y: Point, material: Material, shade: int = NORMAL) -> None:
        """An upright rectangle from x[0] to x[1] and y[0] to y[1]."""
        self.polygon(((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])), material, shade)

    def codes(self) -> np.ndarray:
        """(height, width) uint8, a writable copy."""
        return np.array(self.image)

    def body_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Body coordinates of the pixels: y (height, 1) and x (1, width)."""
        y = (np.arange(self.image.height, dtype=np.float32) - self.top) / self.scale
        x = (np.arange(self.image.width, dtype=np.float32) - self.axis) * (self.sign / self.scale)
        return y[:, None], x[None, :]


def _odd(value: np.ndarray, period: float) -> np.ndarray:
    """True in every second band of half a period."""
    mask: np.ndarray = (np.floor(value * (2.0 / period)) % 2) == 1
    return mask


def pattern_mask(name: str, y: np.ndarray, x: np.ndarray, *, from_front: bool) -> np.ndarray:
    """Where a pattern shows its second color.

    Args:
        name: one of ``identities.PATTERNS`` but "plain".
        y, x: (H, 1) and (1, W) body coordinates.
        from_front: a print sits on the chest and is not seen from elsewhere.

    Returns:
        Mask that broadcasts to (H, W).
    """
    if name == "striped":
        return _odd(y, 0.085)
    if name == "pinstriped":
        return _odd(x + 0.5, 0.062)
    if name == "checked":
        checks: np.ndarray = _odd(y, 0.12) ^ _odd(x + 0.515, 0.1)
        return checks
    if name == "dotted":
        row = np.floor(y / 0.058)
        dy = y - (row + 0.5) * 0.058
        dx = (x + 0.5 + 0.5 * 0.07 * (row % 2)) % 0.07 - 0.035
        return dx * dx + dy * dy < 0.021**2
    if name == "two-tone":
        return y > 0.325
    print_: np.ndarray = (np.abs(x) < 0.05) & (np.abs(y - 0.27) < 0.045) & from_front
    return print_


def apply_pattern(codes: np.ndarray, mask: np.ndarray, material: Material) -> None:
    """Moves the masked pixels of a material to its second color, in place."""
    codes[mask & (codes // SHADES == material)] += SHADES
