"""Cameras of the target world and the images they take.

A short track shares view, light, place and occlusion; its frames differ by jitter, gait and noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from reid_core.datasets.synthetic.drawing import NORMAL, OVERSAMPLE, SHADES, Material
from reid_core.datasets.synthetic.figure import Pose, draw_figure
from reid_core.datasets.synthetic.identities import VIEWS, Identity
from reid_core.datasets.synthetic.scenes import scene
from reid_core.types import Modality

_OCCLUDED = 0.15  # share of tracks with something in front
_ROOM = 1.5  # a scene's size in crops


@dataclass(frozen=True, slots=True)
class Camera:
    """One fixed camera.

    Attributes:
        number: as the data set numbers it.
        modality: VISIBLE or INFRARED.
        place: what is behind the identities (``scenes.PLACES``).
        cast: gain per channel, also the exposure (one number in infrared).
        contrast: slope around mid-gray.
        blur: weight of each neighbor in a three-tap blur, 0 to 1/3.
        noise: standard deviation of a pixel, of 1.
        vignette: darkening at the corners.
        occluder: brightness of the objects in front of identities.
    """

    number: int
    modality: Modality
    place: str
    cast: tuple[float, ...]
    contrast: float
    blur: float
    noise: float
    vignette: float = 0.0
    occluder: float = 0.4


SYSU_CAMERAS = (
    Camera(1, Modality.VISIBLE, "hall", (1.026, 0.961, 0.818), 1.0, 0.104, 0.026),
    Camera(2, Modality.VISIBLE, "corridor", (0.74, 0.818, 0.87), 0.87, 0.208, 0.039),
    Camera(3, Modality.INFRARED, "corridor", (0.935,), 1.0, 0.156, 0.026, vignette=0.325),
    Camera(4, Modality.VISIBLE, "street", (1.0, 1.065, 1.13), 1.195, 0.065, 0.026),
    Camera(5, Modality.VISIBLE, "park", (1.182, 1.078, 0.896), 1.13, 0.156, 0.0325),
    Camera(6, Modality.INFRARED, "gate", (0.935,), 1.0, 0.156, 0.0325, vignette=0.455),
)


@dataclass(frozen=True, slots=True)
class Shot:
    """What the frames of one track share.

    ``pose`` is the first frame's; ``corner`` is the crop of the scene in canvas pixels;
    ``light`` = (gain, slope along x, slope along y, strength of the light from one side).
    """

    pose: Pose
    corner: tuple[int, int]
    light: tuple[float, float, float, float]
    occlusion: tuple[str, float] | None


def film(
    camera: Camera,
    identity: Identity,
    table: np.ndarray,
    *,
    height: int,
    num_tracks: int,
    num_frames: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """All images that a camera takes of an identity, track by track.

    Args:
        camera: the camera.
        identity: who walks by.
        table: (codes, C) light per canvas code, C as in the camera's scene.
        height: of an image; the width is half of it.
        num_tracks, num_frames: short tracks, and frames in each of them.
        rng: source of every choice.

    Yields:
        (height, height // 2, C) uint8.
    """
    views = rng.permutation(len(VIEWS))
    for track in range(num_tracks):
        shot = _stage(identity, VIEWS[views[track % len(VIEWS)]], height, rng)
        for frame in range(num_frames):
            pose = replace(
                shot.pose,
                phase=shot.pose.phase + 0.9 * frame,
                top=shot.pose.top + rng.normal(0.0, 0.8),
                axis=shot.pose.axis + rng.normal(0.0, 1.2),
                scale=shot.pose.scale * (1.0 + rng.normal(0.0, 0.01)),
            )
            yield photograph(camera, identity, table, replace(shot, pose=pose), height, rng)


def _stage(identity: Identity, view: str, height: int, rng: np.random.Generator) -> Shot:
    canvas = OVERSAMPLE * height
    # Detection boxes follow the identity, so that little of the stature is left in a crop.
    scale = canvas * (0.93 + 0.3 * (identity.stature - 0.95)) * rng.uniform(0.94, 1.03)
    slack = canvas - scale
    room = int((_ROOM - 1.0) * canvas)
    occlusion = None
    if rng.random() < _OCCLUDED:
        occlusion = (("pole", "bin", "rail")[rng.integers(3)], float(rng.uniform()))
    return Shot(
        pose=Pose(
            view=view,
            phase=float(rng.uniform(0.0, 2.0 * math.pi)),
            top=slack * float(rng.uniform(0.35, 0.8)),
            axis=canvas * (0.25 + float(rng.uniform(-0.025, 0.025))),
            scale=scale,
        ),
        corner=(int(rng.integers(0, room // 4)), int(rng.integers(0, room))),
        light=(
            float(rng.uniform(0.85, 1.15)),
            float(rng.uniform(-0.12, 0.12)),
            float(rng.uniform(-0.1, 0.1)),
            float(rng.uniform(-0.22, 0.22)),
        ),
        occlusion=occlusion,
    )


def photograph(
    camera: Camera,
    identity: Identity,
    table: np.ndarray,
    shot: Shot,
    height: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One image, (height, height // 2, C) uint8."""
    rows, columns = OVERSAMPLE * height, height
    codes = draw_figure(identity, shot.pose, (rows, columns))
    if shot.occlusion is not None:
        _occlude(codes, *shot.occlusion)
    place = scene(
        camera.place,
        int(rows * _ROOM),
        int(rows * _ROOM),
        infrared=camera.modality == Modality.INFRARED,
    )
    top, left = shot.corner
    behind = place[top : top + rows, left : left + columns]
    image = develop(codes, table, behind, side_light=shot.light[3])
    image *= _illumination(camera, shot.light, image.shape[:2])
    image *= np.asarray(camera.cast, dtype=np.float32)
    image = _blurred(image, camera.blur)
    image = (image - 0.45) * camera.contrast + 0.45
    image += camera.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return to_uint8(image)


def develop(
    codes: np.ndarray, table: np.ndarray, behind: np.ndarray, *, side_light: float
) -> np.ndarray:
    """Light of a drawn figure over a background, at half the canvas size.

    Args:
        codes: (2H, 2W) canvas codes, 0 where the background shows.
        table: (codes, C) light per code.
        behind: (2H, 2W, C).
        side_light: from the left if positive; what makes a body look round.

    Returns:
        (H, W, C) float32.
    """
    light = table[codes]
    open_ = codes < SHADES
    np.copyto(light, behind, where=open_[..., None])
    body = _box_mean(np.where(open_, np.float32(0.0), np.float32(1.0)))
    padded = np.zeros((body.shape[0], body.shape[1] + 4), dtype=np.float32)
    padded[:, 2:-2] = body
    around = (padded[:, :-4] + padded[:, 1:-3] + body + padded[:, 3:-1] + padded[:, 4:]) * 0.2
    round_ = 1.0 + body * (0.3 * (around - 0.9) + side_light * (padded[:, 4:] - padded[:, :-4]))
    lit: np.ndarray = _box_mean(light) * round_[..., None]
    return lit


def to_uint8(image: np.ndarray) -> np.ndarray:
    """0 to 1 -> 0 to 255, clipped and rounded."""
    return np.clip(image * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)


def _box_mean(a: np.ndarray) -> np.ndarray:
    total: np.ndarray = a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2]
    return 0.25 * total


def _illumination(
    camera: Camera, light: tuple[float, float, float, float], shape: tuple[int, int]
) -> np.ndarray:
    """(H, W, 1) float32 gain."""
    y = np.linspace(-1.0, 1.0, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, shape[1], dtype=np.float32)[None, :]
    gain, along_x, along_y, _ = light
    field = gain * (1.0 + along_x * x + along_y * y)
    if camera.vignette:
        field *= 1.0 - 0.5 * camera.vignette * (x * x + y * y)
    return field[..., None].astype(np.float32)


def _blurred(image: np.ndarray, weight: float) -> np.ndarray:
    out = image.copy()
    out[1:-1] += weight * (image[:-2] + image[2:] - 2.0 * image[1:-1])
    result = out.copy()
    result[:, 1:-1] += weight * (out[:, :-2] + out[:, 2:] - 2.0 * out[:, 1:-1])
    return result


def _occlude(codes: np.ndarray, kind: str, where: float) -> None:
    """Puts an object in front of the identity, in place."""
    rows, columns = codes.shape
    code = Material.OCCLUDER * SHADES + NORMAL
    if kind == "pole":
        left = int(where * columns * 0.85)
        codes[:, left : left + columns // 10] = code
        codes[:, left] = code - 2
    elif kind == "bin":
        top = int(rows * (0.68 + 0.15 * where))
        left = 0 if where < 0.5 else columns // 2
        codes[top:, left : left + columns // 2] = code
        codes[top : top + 2, left : left + columns // 2] = code - 3
    else:
        for height in (0.62, 0.76):
            top = int(rows * (height + 0.1 * where))
            codes[top : top + rows // 40] = code
