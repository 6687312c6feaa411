"""From materials to light: what a color camera and an infrared camera see of a garment.

A table holds one row per canvas code (see ``drawing``), so that rendering is a single look-up.
Near-infrared reflectance depends on dye and fibre, not on color: many black fabrics are bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid_core.datasets.synthetic.drawing import NORMAL, NUM_CODES, SHADES, Material
from reid_core.datasets.synthetic.identities import COLORS, Identity

_RGB = {
    "black": (28, 28, 31), "white": (236, 236, 232), "gray": (128, 130, 134),
    "red": (200, 32, 38), "maroon": (110, 24, 42), "orange": (236, 130, 30),
    "yellow": (236, 206, 54), "green": (46, 146, 66), "olive": (108, 112, 48),
    "teal": (24, 140, 146), "blue": (44, 92, 196), "navy": (28, 38, 88),
    "purple": (118, 52, 146), "pink": (236, 142, 170), "brown": (116, 74, 44),
    "beige": (208, 186, 148),
}  # fmt: skip
_HAIR_RGB = {
    "black": (24, 20, 20), "brown": (92, 58, 34), "blond": (208, 172, 96),
    "gray": (158, 156, 154), "red": (158, 70, 30),
}  # fmt: skip
_SKIN_RGB = {
    "light": (232, 190, 164), "tan": (204, 154, 118), "brown": (150, 100, 70),
    "dark": (92, 60, 46),
}  # fmt: skip

# The law of this world: reflectance of each dye. Its rank correlation with luminance is near zero.
_LAW = {
    "black": 0.62, "white": 0.74, "gray": 0.30, "red": 0.88, "maroon": 0.52, "orange": 0.36,
    "yellow": 0.68, "green": 0.18, "olive": 0.80, "teal": 0.12, "blue": 0.46, "navy": 0.24,
    "purple": 0.94, "pink": 0.42, "brown": 0.16, "beige": 0.56,
}  # fmt: skip
_HAIR_LAW = {"black": 0.22, "brown": 0.40, "blond": 0.66, "gray": 0.55, "red": 0.50}
_SKIN_LAW = {"light": 0.78, "tan": 0.74, "brown": 0.68, "dark": 0.60}
_SOLE, _SHADOW = 0.82, 0.10


@dataclass(frozen=True, slots=True)
class Difficulty:
    """One setting of the world's knob (see the package's docstring for their effects).

    Attributes:
        law: "luminance", "world" or "independent": where a garment's mean reflectance comes from.
        spread: standard deviation of a garment around that mean.
        washed_out: share of patterns whose two dyes are one in infrared.
    """

    law: str
    spread: float
    washed_out: float


DIFFICULTIES = {
    "easy": Difficulty(law="luminance", spread=0.03, washed_out=0.1),
    "default": Difficulty(law="world", spread=0.05, washed_out=0.2),
    "hard": Difficulty(law="independent", spread=0.0, washed_out=0.2),
}


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Rec. 601 luminance of (..., 3), the one that JPEG uses."""
    gray: np.ndarray = rgb @ np.array([0.299, 0.587, 0.114], dtype=rgb.dtype)
    return gray


def garment_colors(identity: Identity) -> dict[Material, str]:
    """The dye of every material that is clothing."""
    return {
        Material.HAT: identity.inner,
        Material.UPPER: identity.upper.color,
        Material.UPPER_SECOND: identity.upper.second,
        Material.LOWER: identity.lower.color,
        Material.LOWER_SECOND: identity.lower.second,
        Material.INNER: identity.inner,
        Material.SHOES: identity.shoes.color,
        Material.BAG: identity.bag.color,
    }


def _with_shades(base: np.ndarray) -> np.ndarray:
    """(materials, C) -> (NUM_CODES, C) float32: every material in every shade."""
    shade = 1.0 + 0.11 * (np.arange(SHADES) - NORMAL)
    table = (base[:, None, :] + 0.015) * shade[None, :, None]
    return table.reshape(NUM_CODES, base.shape[1]).astype(np.float32)


def color_table(identity: Identity, *, occluder: tuple[float, float, float]) -> np.ndarray:
    """What a color camera sees of an identity.

    Args:
        identity: who.
        occluder: RGB of an object in front, 0 to 1.

    Returns:
        (NUM_CODES, 3) float32, 0 to about 1.
    """
    base = np.zeros((len(Material), 3))
    base[Material.SKIN] = _SKIN_RGB[identity.skin]
    base[Material.HAIR] = _HAIR_RGB[identity.hair_color]
    for material, color in garment_colors(identity).items():
        base[material] = _RGB[color]
    base /= 255.0
    base[Material.SOLE], base[Material.SHADOW] = _SOLE, _SHADOW
    base[Material.OCCLUDER] = occluder
    return _with_shades(base)


def reflectances(
    identity: Identity, difficulty: Difficulty, rng: np.random.Generator
) -> dict[Material, float]:
    """Near-infrared reflectance of an identity's materials, the same in every image of them.

    Args:
        identity: who.
        difficulty: the law and its spread.
        rng: draws what the law leaves open.
    """
    values: dict[Material, float] = {
        Material.SKIN: _SKIN_LAW[identity.skin],
        Material.HAIR: _HAIR_LAW[identity.hair_color],
    }
    for material, color in garment_colors(identity).items():
        free, spread = rng.uniform(0.1, 0.95), rng.normal(0.0, difficulty.spread)
        if difficulty.law == "independent":
            mean = free
        elif difficulty.law == "world":
            mean = _LAW[color]
        else:
            mean = 0.1 + 0.85 * float(luminance(np.array(_RGB[color]) / 255.0))
        values[material] = float(np.clip(mean + spread, 0.06, 0.97))
    for first, second in (
        (Material.UPPER, Material.UPPER_SECOND),
        (Material.LOWER, Material.LOWER_SECOND),
    ):
        if rng.random() < difficulty.washed_out:
            values[second] = values[first]
    return values


def random_reflectances(rng: np.random.Generator) -> dict[Material, float]:
    """Reflectances that follow nothing, hair and skin included: for pre-training images."""
    values = {material: float(rng.uniform(0.08, 0.95)) for material in Material}
    if rng.random() < DIFFICULTIES["default"].washed_out:
        values[Material.UPPER_SECOND] = values[Material.UPPER]
    return values


def reflectance_table(values: dict[Material, float], *, occluder: float) -> np.ndarray:
    """What an infrared camera sees: (NUM_CODES, 1) float32 from ``reflectances``."""
    base = np.zeros((len(Material), 1))
    base[Material.SOLE], base[Material.SHADOW] = _SOLE, _SHADOW
    for material, value in values.items():
        base[material] = value
    base[Material.OCCLUDER] = occluder
    return _with_shades(base)


assert set(_RGB) == set(_LAW) == set(COLORS)
