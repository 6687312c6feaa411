"""Who the generated identities are: attributes, drawn independently of each other.

Nothing here knows pixels. An identity is the same for every layout, camera and difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

VIEWS = ("front", "back", "left", "right")

COLORS = (
    "black", "white", "gray", "red", "maroon", "orange", "yellow", "green",
    "olive", "teal", "blue", "navy", "purple", "pink", "brown", "beige",
)  # fmt: skip
HAIR_COLORS = ("black", "brown", "blond", "gray", "red")
SKINS = ("light", "tan", "brown", "dark")

HAIR_STYLES = ("short", "long", "ponytail", "bun", "curly", "bob", "bald", "cap")
UPPERS = ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat", "tank top")
LOWERS = ("jeans", "trousers", "leggings", "shorts", "skirt", "long skirt")
PATTERNS = ("plain", "striped", "pinstriped", "checked", "dotted", "two-tone", "printed")
SHOES = ("sneakers", "boots", "shoes", "sandals")
BAGS = ("none", "backpack", "shoulder bag", "handbag", "suitcase")

# Common street colors come up twice as often: several identities in dark jeans is what makes a
# gallery confusing.
_COLOR_WEIGHT = {"black": 2.0, "white": 1.5, "gray": 2.0, "navy": 1.5, "blue": 1.5}

_HAIR_WEIGHT = {
    "woman": {"short": 0.6, "long": 2.5, "ponytail": 2.0, "bun": 1.3, "curly": 1.0, "bob": 1.6,
              "bald": 0.0, "cap": 0.7},
    "man": {"short": 3.0, "long": 0.4, "ponytail": 0.4, "bun": 0.3, "curly": 1.2, "bob": 0.4,
            "bald": 1.4, "cap": 1.5},
}  # fmt: skip
_LOWER_WEIGHT = {
    "woman": {"jeans": 1.6, "trousers": 1.0, "leggings": 1.3, "shorts": 1.0, "skirt": 1.4,
              "long skirt": 1.2},
    "man": {"jeans": 2.0, "trousers": 2.2, "leggings": 0.4, "shorts": 1.7, "skirt": 0.0,
            "long skirt": 0.0},
}  # fmt: skip
_PATTERN_WEIGHT = {"plain": 2.5}
_BAG_WEIGHT = {"none": 2.0, "backpack": 1.5}
_SLEEVES = {
    "t-shirt": ("short", "short", "long"),
    "shirt": ("long", "long", "short"),
    "tank top": ("none",),
}


@dataclass(frozen=True, slots=True)
class Garment:
    """One piece of clothing: what it is, its color, and its pattern in a second color."""

    kind: str
    color: str
    pattern: str = "plain"
    second: str = "white"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that stays the same between two images of one identity.

    Attributes:
        gender: "woman" or "man".
        stature: body height as a share of the tallest, 0.86 to 1.
        build: width factor of body and limbs, 0.85 to 1.2.
        hair, hair_color, skin: from the tuples above.
        upper, lower, shoes, bag: garments; a bag of kind "none" is not drawn.
        sleeves: "none", "short" or "long".
        inner: color of what shows under an open jacket, and of a cap.
        side: +1 or -1, the identity's own side on which a bag is carried.
    """

    gender: str
    stature: float
    build: float
    hair: str
    hair_color: str
    skin: str
    upper: Garment
    lower: Garment
    shoes: Garment
    bag: Garment
    sleeves: str
    inner: str
    side: int


def _pick(
    rng: np.random.Generator, names: tuple[str, ...], weight: Mapping[str, float] | None = None
) -> str:
    """One of the names; names without a weight count 1."""
    share = np.cumsum([(weight or {}).get(name, 1.0) for name in names])
    return names[int(np.searchsorted(share, rng.random() * share[-1], side="right"))]


def _other_color(rng: np.random.Generator, color: str) -> str:
    return _pick(rng, COLORS, {color: 0.0})


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draws one identity.

    Args:
        rng: source of all choices; the same state gives the same identity.

    Returns:
        The attributes, independent of each other but for gender and what a garment implies.
    """
    gender = _pick(rng, ("woman", "man"))
    kind = _pick(rng, UPPERS)
    color = _pick(rng, COLORS, _COLOR_WEIGHT)
    lower_color = _pick(rng, COLORS, _COLOR_WEIGHT)
    return Identity(
        gender=gender,
        stature=float(rng.uniform(0.88, 1.0) - (0.02 if gender == "woman" else 0.0)),
        build=float(np.clip(rng.normal(1.0, 0.11), 0.82, 1.25)),
        hair=_pick(rng, HAIR_STYLES, _HAIR_WEIGHT[gender]),
        hair_color=_pick(rng, HAIR_COLORS, {"black": 1.6, "brown": 1.6}),
        skin=_pick(rng, SKINS, {"light": 2.0, "tan": 1.5}),
        upper=Garment(kind, color, _pick(rng, PATTERNS, _PATTERN_WEIGHT), _other_color(rng, color)),
        lower=Garment(
            _pick(rng, LOWERS, _LOWER_WEIGHT[gender]),
            lower_color,
            _pick(rng, ("plain", "checked", "pinstriped"), {"plain": 6.0}),
            _other_color(rng, lower_color),
        ),
        shoes=Garment(_pick(rng, SHOES), _pick(rng, COLORS, {"black": 3.0, "white": 3.0})),
        bag=Garment(_pick(rng, BAGS, _BAG_WEIGHT), _pick(rng, COLORS, {"black": 2.0})),
        sleeves=_pick(rng, _SLEEVES.get(kind, ("long",))),
        inner=_pick(rng, COLORS, {"white": 3.0, "gray": 2.0, color: 0.0}),
        side=1 if rng.random() < 0.5 else -1,
    )
