"""What one would say about a picture of a person, as a sentence and as a set of words."""

from __future__ import annotations

import numpy as np

from reid_core.datasets.synthetic.identities import (
    BAGS,
    COLOURS,
    HAIR_COLOURS,
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
    *(f"hair {colour}" for colour in HAIR_COLOURS),
    *(f"upper {kind}" for kind in UPPERS),
    *(f"upper {pattern}" for pattern in PATTERNS),
    *(f"upper {colour}" for colour in COLOURS),
    *(f"sleeves {length}" for length in ("none", "short", "long")),
    *(f"lower {kind}" for kind in LOWERS),
    *(f"lower {colour}" for colour in COLOURS),
    *(f"shoes {kind}" for kind in SHOES),
    *(f"shoes {colour}" for colour in COLOURS),
    *(f"bag {kind}" for kind in BAGS),
    *(f"bag {colour}" for colour in COLOURS),
    *(f"view {view}" for view in VIEWS),
)  # fmt: skip
_INDEX = {name: i for i, name in enumerate(WORDS)}


def caption(person: Identity, view: str, rng: np.random.Generator, *, colours: bool = True) -> str:
    """A sentence about a picture.

    Args:
        person: who it shows.
        view: one of ``people.VIEWS``.
        rng: chooses among the ways to say it.
        colours: False for gray and infrared pictures, where colour words would be guesses.

    Returns:
        One sentence in lower case with a full stop.
    """
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    shown = person.upper
    if shown.pattern == "printed" and view != "front":
        shown = Garment(shown.kind, shown.colour)
    sleeves = {"short": "short-sleeved ", "long": "long-sleeved "}.get(person.sleeves, "")
    if shown.kind not in ("t-shirt", "shirt"):
        sleeves = ""
    bag = ""
    if person.bag.kind != "none":
        bag = f", carrying {_garment(person.bag, colours)}"
    phrases = _VIEW_PHRASE[view]
    return template.format(
        who=_who(person, colours),
        upper=_garment(shown, colours, sleeves),
        lower=_garment(person.lower, colours),
        shoes=_garment(person.shoes, colours),
        bag=bag,
        view=phrases[rng.integers(len(phrases))],
    )


def words(person: Identity, view: str, *, colours: bool = True) -> np.ndarray:
    """The words that hold for a picture, whether its caption mentions them or not.

    Args:
        person, view, colours: as for ``caption``.

    Returns:
        (len(WORDS),) uint8, 1 where the word holds.
    """
    names = [
        person.gender,
        f"hair {person.hair}",
        f"upper {person.upper.kind}",
        f"sleeves {person.sleeves}",
        f"lower {person.lower.kind}",
        f"shoes {person.shoes.kind}",
        f"bag {person.bag.kind}",
        f"view {view}",
    ]
    printed_away = person.upper.pattern == "printed" and view != "front"
    names.append("upper plain" if printed_away else f"upper {person.upper.pattern}")
    if colours:
        garments = (("upper", person.upper), ("lower", person.lower), ("shoes", person.shoes))
        names += [f"{part} {garment.colour}" for part, garment in garments]
        if person.bag.kind != "none":
            names.append(f"bag {person.bag.colour}")
        if person.hair not in ("bald", "cap"):
            names.append(f"hair {person.hair_colour}")
    result = np.zeros(len(WORDS), dtype=np.uint8)
    result[[_INDEX[name] for name in names]] = 1
    return result


def _who(person: Identity, colours: bool) -> str:
    if person.hair == "bald":
        return f"bald {person.gender}"
    if person.hair == "cap":
        return f"{person.gender} with a {person.inner + ' ' if colours else ''}cap"
    colour = f"{person.hair_colour} " if colours else ""
    if person.hair in ("ponytail", "bun", "bob"):
        return f"{person.gender} with a {colour}{person.hair}"
    return f"{person.gender} with {person.hair} {colour}hair"


def _garment(garment: Garment, colours: bool, sleeves: str = "") -> str:
    parts = []
    if colours and garment.pattern == "plain":
        parts.append(garment.colour)
    elif colours:
        parts.append(f"{garment.colour} and {garment.second}")
    if garment.pattern != "plain":
        parts.append(garment.pattern)
    text = f"{sleeves}{' '.join([*parts, garment.kind])}"
    if garment.kind in _PLURAL:
        return text
    return f"{'an' if text[0] in 'aeio' else 'a'} {text}"
