"""What one would say about an image of an identity, as a sentence and as a set of words."""

from __future__ import annotations

import numpy as np

from reid_core.datasets.synthetic.identities import (
    BAGS,
    COLORS,
    HAIR_COLORS,
    HAIR_STYLES,
    LOWERS,
    PATTERNS,
    SHOES,
    UPPERS,
    VIEWS,
    Garment,
    Identity,
)

_PLURAL = {"jeans", "trousers", "leggings", "shorts", "sneakers", "boots", "shoes", "sandals"}
_VIEW_PHRASE = {
    "front": ("seen from the front", "facing the camera"),
    "back": ("seen from behind", "walking away"),
    "left": ("seen from the side", "walking to the left"),
    "right": ("seen from the side", "walking to the right"),
}
_TEMPLATES = (
    "a {who} wearing {upper}, {lower} and {shoes}{bag}.",
    "a photo of a {who} in {upper} with {lower} and {shoes}{bag}, {view}.",
    "a {who}, {view}, dressed in {upper} and {lower}, with {shoes}{bag}.",
    "this is a {who} {view}: {lower} and {upper}, {shoes}{bag}.",
)

WORDS: tuple[str, ...] = (
    "woman", "man",
    *(f"hair {style}" for style in HAIR_STYLES),
    *(f"hair {color}" for color in HAIR_COLORS),
    *(f"upper {kind}" for kind in UPPERS),
    *(f"upper {pattern}" for pattern in PATTERNS),
    *(f"upper {color}" for color in COLORS),
    *(f"sleeves {length}" for length in ("none", "short", "long")),
    *(f"lower {kind}" for kind in LOWERS),
    *(f"lower {color}" for color in COLORS),
    *(f"shoes {kind}" for kind in SHOES),
    *(f"shoes {color}" for color in COLORS),
    *(f"bag {kind}" for kind in BAGS),
    *(f"bag {color}" for color in COLORS),
    *(f"view {view}" for view in VIEWS),
)  # fmt: skip
_INDEX = {name: i for i, name in enumerate(WORDS)}


def caption(identity: Identity, view: str, rng: np.random.Generator, *, colors: bool = True) -> str:
    """A sentence about an image.

    Args:
        identity: who it shows.
        view: one of ``identities.VIEWS``.
        rng: chooses among the ways to say it.
        colors: False for gray and infrared images, where color words would be guesses.

    Returns:
        One sentence in lower case with a full stop.
    """
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    shown = identity.upper
    if shown.pattern == "printed" and view != "front":
        shown = Garment(shown.kind, shown.color)
    sleeves = {"short": "short-sleeved ", "long": "long-sleeved "}.get(identity.sleeves, "")
    if shown.kind not in ("t-shirt", "shirt"):
        sleeves = ""
    bag = ""
    if identity.bag.kind != "none":
        bag = f", carrying {_garment(identity.bag, colors)}"
    phrases = _VIEW_PHRASE[view]
    return template.format(
        who=_who(identity, colors),
        upper=_garment(shown, colors, sleeves),
        lower=_garment(identity.lower, colors),
        shoes=_garment(identity.shoes, colors),
        bag=bag,
        view=phrases[rng.integers(len(phrases))],
    )


def words(identity: Identity, view: str, *, colors: bool = True) -> np.ndarray:
    """The words that hold for an image, whether its caption mentions them or not.

    Args:
        identity, view, colors: as for ``caption``.

    Returns:
        (len(WORDS),) uint8, 1 where the word holds.
    """
    names = [
        identity.gender,
        f"hair {identity.hair}",
        f"upper {identity.upper.kind}",
        f"sleeves {identity.sleeves}",
        f"lower {identity.lower.kind}",
        f"shoes {identity.shoes.kind}",
        f"bag {identity.bag.kind}",
        f"view {view}",
    ]
    printed_away = identity.upper.pattern == "printed" and view != "front"
    names.append("upper plain" if printed_away else f"upper {identity.upper.pattern}")
    if colors:
        garments = (("upper", identity.upper), ("lower", identity.lower), ("shoes", identity.shoes))
        names += [f"{part} {garment.color}" for part, garment in garments]
        if identity.bag.kind != "none":
            names.append(f"bag {identity.bag.color}")
        if identity.hair not in ("bald", "cap"):
            names.append(f"hair {identity.hair_color}")
    result = np.zeros(len(WORDS), dtype=np.uint8)
    result[[_INDEX[name] for name in names]] = 1
    return result


def _who(identity: Identity, colors: bool) -> str:
    if identity.hair == "bald":
        return f"bald {identity.gender}"
    if identity.hair == "cap":
        return f"{identity.gender} with a {identity.inner + ' ' if colors else ''}cap"
    color = f"{identity.hair_color} " if colors else ""
    if identity.hair in ("ponytail", "bun", "bob"):
        return f"{identity.gender} with a {color}{identity.hair}"
    return f"{identity.gender} with {identity.hair} {color}hair"


def _garment(garment: Garment, colors: bool, sleeves: str = "") -> str:
    parts = []
    if colors and garment.pattern == "plain":
        parts.append(garment.color)
    elif colors:
        parts.append(f"{garment.color} and {garment.second}")
    if garment.pattern != "plain":
        parts.append(garment.pattern)
    text = f"{sleeves}{' '.join([*parts, garment.kind])}"
    if garment.kind in _PLURAL:
        return text
    return f"{'an' if text[0] in 'aeio' else 'a'} {text}"
