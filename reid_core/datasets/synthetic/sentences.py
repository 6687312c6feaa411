"""What strangers write about an image: they leave things out, choose other words, and err.

`captions` says what is true, in a few fixed forms; these sentences are for data sets of images and
captions, whose annotators were paid by the sentence.
"""

from __future__ import annotations

import numpy as np

from reid_core.datasets.synthetic.identities import COLORS, Garment, Identity

_WRONG_COLOR = 0.05  # share of the colors that are mistaken for any other one
_OTHER_WORD = 0.35  # share of the colors and garments that are called by another name
_TYPING_ERROR = 0.06  # share of the sentences with two letters swapped
_CARELESS = 0.1  # share of the sentences without capitals and full stop
_SAID = {"upper": 0.97, "lower": 0.9, "shoes": 0.6, "bag": 0.8, "hair": 0.5, "view": 0.3}
_PATTERN_SAID = 0.7

_COLOR_WORDS = {
    "navy": ("dark blue", "navy blue", "blue"),
    "maroon": ("dark red", "red", "burgundy"),
    "gray": ("grey", "light gray", "silver"),
    "beige": ("tan", "cream", "khaki"),
    "teal": ("blue green", "turquoise", "green"),
    "olive": ("dark green", "army green", "green"),
    "black": ("dark", "dark colored"),
    "white": ("light colored", "cream"),
    "purple": ("violet",),
    "pink": ("light red", "rose"),
    "brown": ("dark brown", "tan"),
    "orange": ("bright orange",),
}
_GARMENT_WORDS = {
    "t-shirt": ("tee shirt", "tshirt", "shirt"),
    "shirt": ("button up shirt", "blouse", "top"),
    "sweater": ("pullover", "jumper", "top"),
    "hoodie": ("hooded sweatshirt", "sweatshirt"),
    "jacket": ("coat", "windbreaker"),
    "coat": ("jacket", "overcoat"),
    "tank top": ("sleeveless top", "vest"),
    "jeans": ("denim pants", "pants"),
    "trousers": ("pants", "slacks"),
    "leggings": ("tights", "tight pants"),
    "shorts": ("short pants",),
    "long skirt": ("skirt", "dress"),
    "sneakers": ("tennis shoes", "trainers", "shoes"),
    "boots": ("high shoes",),
    "shoes": ("footwear",),
    "backpack": ("bag", "rucksack", "school bag"),
    "shoulder bag": ("bag", "messenger bag"),
    "handbag": ("purse", "bag"),
    "suitcase": ("trolley", "luggage"),
}
_NO_ARTICLE = ("jeans", "pants", "trousers", "slacks", "leggings", "tights", "shorts", "sneakers",
               "shoes", "trainers", "boots", "sandals", "footwear", "luggage")  # fmt: skip
_WHO = {
    "woman": ("woman", "lady", "girl", "young woman", "female", "person"),
    "man": ("man", "guy", "young man", "male", "boy", "person"),
}
_PRONOUN = {"woman": "she", "man": "he"}
_OPENINGS = (
    "a {who} wearing {clothes}",
    "the {who} is wearing {clothes}",
    "this {who} is dressed in {clothes}",
    "a {who} has {clothes} on",
    "the {who} wears {clothes}",
    "{clothes} are worn by the {who}",
)
_VIEWS = {
    "front": ("facing the camera", "walking towards the camera"),
    "back": ("walking away", "with the back to the camera", "seen from behind"),
    "left": ("walking to the left", "seen from the side"),
    "right": ("walking to the right", "seen from the side"),
}


def write_sentence(identity: Identity, view: str, rng: np.random.Generator) -> str:
    """One annotator's sentence about one color image.

    Args:
        identity: who it shows.
        view: one of ``identities.VIEWS``.
        rng: the annotator's choices and mistakes.
    """
    said = {part for part, share in _SAID.items() if rng.random() < share}
    said.add("lower" if "upper" not in said else "upper")
    parts = {"upper": _seen(identity.upper, view), "lower": identity.lower, "shoes": identity.shoes}
    clothes = _listed([_garment(g, rng) for part, g in parts.items() if part in said])
    text = _pick(_OPENINGS, rng).format(who=_pick(_WHO[identity.gender], rng), clothes=clothes)
    for clause in rng.permutation(["hair", "bag", "view"]):
        if clause in said:
            text += _clause(str(clause), identity, view, rng)
    return _typed(text, rng)


def _clause(name: str, identity: Identity, view: str, rng: np.random.Generator) -> str:
    """What is added to the sentence, or a sentence of its own; empty if there is nothing."""
    if name == "view":
        return f", {_pick(_VIEWS[view], rng)}"
    if name == "bag":
        if identity.bag.kind == "none":
            return ""
        what, forms = _garment(identity.bag, rng), (", carrying {}", " with {}", ". {} carries {}")
    else:
        what, forms = _hair(identity, rng), (" with {}", ", with {}", ". {} has {}")
    form = _pick(forms, rng)
    pronoun = _PRONOUN[identity.gender]
    return form.format(pronoun, what) if form.startswith(".") else form.format(what)


def _seen(upper: Garment, view: str) -> Garment:
    """A print is on the front only."""
    if upper.pattern == "printed" and view != "front":
        return Garment(upper.kind, upper.color)
    return upper


def _garment(garment: Garment, rng: np.random.Generator) -> str:
    color = _color(garment.color, rng)
    if garment.pattern != "plain" and rng.random() < _PATTERN_SAID:
        color = f"{color} and {_color(garment.second, rng)} {garment.pattern}"
    kind = _renamed(garment.kind, _GARMENT_WORDS, rng)
    text = f"{color} {kind}"
    return text if kind.split()[-1] in _NO_ARTICLE else f"{_article(text)} {text}"


def _hair(identity: Identity, rng: np.random.Generator) -> str:
    if identity.hair == "bald":
        return _pick(("a bald head", "no hair"), rng)
    if identity.hair == "cap":
        return _pick((f"a {_color(identity.inner, rng)} cap", "a hat"), rng)
    color = identity.hair_color
    if rng.random() < _OTHER_WORD:
        color = {"black": "dark", "brown": "dark", "blond": "light"}.get(color, color)
    if identity.hair in ("ponytail", "bun", "bob"):
        return f"{_article(color)} {color} {identity.hair}"
    return f"{identity.hair} {color} hair"


def _color(color: str, rng: np.random.Generator) -> str:
    if rng.random() < _WRONG_COLOR:
        return _pick(COLORS, rng)
    return _renamed(color, _COLOR_WORDS, rng)


def _renamed(name: str, others: dict[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    return _pick(others[name], rng) if name in others and rng.random() < _OTHER_WORD else name


def _listed(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _article(text: str) -> str:
    return "an" if text[0] in "aeio" else "a"


def _typed(text: str, rng: np.random.Generator) -> str:
    """Capitals and a full stop from most hands, swapped letters from some."""
    if rng.random() < _TYPING_ERROR:
        at = int(rng.integers(1, len(text) - 2))
        text = f"{text[:at]}{text[at + 1]}{text[at]}{text[at + 2 :]}"
    if rng.random() < _CARELESS:
        return text
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". ")) + "."


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
