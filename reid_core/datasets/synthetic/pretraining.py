"""The pre-training domain: catalogue images with captions, of other identities, by another
camera.

A start encoder may know what identities look like. It must not know the target world: these
images are clean, their identities come from another seed namespace, and what looks like infrared
here has reflectances that follow nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reid_core.datasets.synthetic import captions
from reid_core.datasets.synthetic.cameras import develop, to_uint8
from reid_core.datasets.synthetic.drawing import OVERSAMPLE
from reid_core.datasets.synthetic.figure import Pose, draw_figure
from reid_core.datasets.synthetic.identities import VIEWS, Identity, draw_identity
from reid_core.datasets.synthetic.palettes import (
    color_table,
    luminance,
    random_reflectances,
    reflectance_table,
)

_NAMESPACE = 7919  # keeps these identities apart from those of every target tree
_PICTURES_PER_PERSON = 4
_GRAY, _INFRARED = 0.15, 0.25  # shares of the images


@dataclass(frozen=True)
class Catalogue:
    """Captioned images for a small CLIP.

    Attributes:
        images: (N, size, size, 3) uint8.
        captions: N sentences; gray and infrared-like images have no color words in theirs.
        words: (N, W) uint8, 1 where a word holds (also unmentioned ones).
        word_names: the W words, e.g. "upper red".
        identity: (N,) int64, equal where the same identity is shown.
    """

    images: np.ndarray
    captions: list[str]
    words: np.ndarray
    word_names: tuple[str, ...]
    identity: np.ndarray


def catalogue(num_images: int, *, seed: int, size: int = 64) -> Catalogue:
    """Draws a catalogue: four views of each identity, in random order of looks.

    Args:
        num_images: N.
        seed: the same seed gives the same catalogue; no seed gives identities of a target tree.
        size: height and width of an image in pixels, even.

    Returns:
        60 % of the images in color, 15 % gray, 25 % infrared-like.
    """
    images = np.empty((num_images, size, size, 3), dtype=np.uint8)
    sentences: list[str] = []
    held = np.empty((num_images, len(captions.WORDS)), dtype=np.uint8)
    identities = np.arange(num_images, dtype=np.int64) // _PICTURES_PER_PERSON
    for row in range(num_images):
        if row % _PICTURES_PER_PERSON == 0:
            source = np.random.SeedSequence(seed, spawn_key=(_NAMESPACE, int(identities[row])))
            rng = np.random.default_rng(source)
            identity, views = draw_identity(rng), rng.permutation(len(VIEWS))
        view = VIEWS[views[row % _PICTURES_PER_PERSON]]
        images[row], colors = _drawn_image(identity, view, size, rng)
        sentences.append(captions.caption(identity, view, rng, colors=colors))
        held[row] = captions.words(identity, view, colors=colors)
    return Catalogue(images, sentences, held, captions.WORDS, identities)


def _drawn_image(
    identity: Identity, view: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """(size, size, 3) uint8 and whether it has colors."""
    canvas = OVERSAMPLE * size
    scale = canvas * (0.93 + 0.3 * (identity.stature - 0.95)) * rng.uniform(0.94, 1.04)
    pose = Pose(
        view=view,
        phase=float(rng.uniform(0.0, 2.0 * math.pi)),
        top=(canvas - scale) * float(rng.uniform(0.2, 0.8)),
        axis=canvas * (0.5 + float(rng.uniform(-0.04, 0.04))),
        scale=scale,
    )
    codes = draw_figure(identity, pose, (canvas, canvas))
    look = rng.random()
    infrared = look < _INFRARED
    if infrared:
        table = reflectance_table(random_reflectances(rng), occluder=0.0)
    else:
        table = color_table(identity, occluder=(0.0, 0.0, 0.0))
    behind = _backdrop(canvas, table.shape[1], rng)
    image = develop(codes, table, behind, side_light=float(rng.uniform(-0.2, 0.2)))
    if _INFRARED <= look < _INFRARED + _GRAY:
        image = luminance(image)[..., None]
    image *= np.float32(rng.uniform(0.85, 1.1))
    image += np.float32(0.01) * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = to_uint8(image)
    return np.broadcast_to(pixels, (size, size, 3)), pixels.shape[2] == 3


def _backdrop(canvas: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """A plain or softly shaded wall, (canvas, canvas, channels) float32."""
    base = rng.uniform(0.35, 0.95) + rng.uniform(-0.06, 0.06, channels)
    slope = rng.uniform(-0.2, 0.2, 2) * (rng.random() < 0.6)
    ramp = np.linspace(-1.0, 1.0, canvas, dtype=np.float32)
    shading = 1.0 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    shaded: np.ndarray = shading[..., None] * base
    return shaded.astype(np.float32)
